"""Do sampler and trainer agree? Policy losses divide one's probabilities by the other's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.nn.decoder import Decoder
from etude.rl.batch import IGNORED, RlBatch, pack
from etude.rl.rollout import Sample

# float32, cached steps against whole rows: about 1e-6 is usual; a wrong mask or position moves 1e-2
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Gap:
    """Absolute differences of log-probabilities over the sampled tokens, in nats."""

    largest: float
    mean: float


@torch.no_grad()
def measure(model: Decoder, samples: Sequence[Sample], temperature: float) -> Gap:
    """Score attempts as the trainer does and compare with what the sampler said."""
    batch = _pack(model, samples, temperature)
    counted = batch.labels != IGNORED
    gaps = (_logp(model, batch) - batch.logp_old).abs()[counted]
    return Gap(float(gaps.max()), float(gaps.mean())) if gaps.numel() else Gap(0.0, 0.0)


@torch.no_grad()
def rescore(model: Decoder, samples: Sequence[Sample], temperature: float, *, rows: int) -> None:
    """Replace the attempts' log-probabilities by the trainer's."""
    order = sorted(samples, key=lambda sample: len(sample.ids))
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        logp = _logp(model, _pack(model, part, temperature)).tolist()
        for sample, row in zip(part, logp, strict=True):
            sample.logp = [0.0, *row[: len(sample.ids) - 1]]


def _pack(model: Decoder, samples: Sequence[Sample], temperature: float) -> RlBatch:
    device = model.embed.weight.device
    return pack(samples, [0.0] * len(samples), temperature=temperature, device=device)


def _logp(model: Decoder, batch: RlBatch) -> Tensor:
    how = {"labels": batch.labels, "segments": batch.segments, "pos": batch.pos}
    return model(batch.ids, **how, temperature=batch.temperature).logp
