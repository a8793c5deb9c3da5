"""Do sampler and trainer agree? Policy losses divide one's probabilities by the other's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from etude.nn.decoder import Decoder
from etude.rl.batch import IGNORED, pack
from etude.rl.sample import Sample

# float32, cached steps against whole rows: about 1e-6 is usual; a wrong mask or position moves 1e-2
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Gap:
    """Absolute differences of log-probabilities over the sampled tokens, in nats."""

    largest: float
    mean: float

    @property
    def told(self) -> str:
        """One line about a gap above the tolerance."""
        return (
            f"sampler and trainer disagree by up to {self.largest:.1e} in log-probability"
            f" (mean {self.mean:.1e}); old log-probabilities come from the trainer"
        )


@torch.no_grad()
def measure(model: Decoder, samples: Sequence[Sample], temperature: float) -> Gap:
    """Score attempts as the trainer does and compare with what the sampler said."""
    batch = pack(samples, temperature=temperature, device=model.embed.weight.device)
    counted = batch.labels != IGNORED
    how = {"labels": batch.labels, "segments": batch.segments, "pos": batch.pos}
    scores = model(batch.ids, **how, temperature=temperature, routes=batch.routes)
    gaps = (scores.logp - batch.logp_roll).abs()[counted]
    return Gap(float(gaps.max()), float(gaps.mean())) if gaps.numel() else Gap(0.0, 0.0)
