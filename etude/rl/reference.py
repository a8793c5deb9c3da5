"""Who scores a round beside the sampler: the trainer, the frozen reference, the critic.

Each runs over whole rows and asks for the log-probabilities of labels alone, so no full logits
exist. What an objective does not ask for is neither kept in memory nor computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from etude.nn import build
from etude.nn.decoder import Decoder
from etude.objectives import mismatch
from etude.parallel.mesh import Ranks
from etude.parallel.shard import shard
from etude.recipe.objectives import Bypass, Gae, Opsm, Ppo
from etude.recipe.stages import Rl
from etude.rl.batch import IGNORED, pack
from etude.rl.critic import ValueModel
from etude.rl.rollout import Sample

ALONE = Ranks()


class Scorer:
    """Fills `old`, `ref` and `value` of a round's samples, and teaches the critic.

    Args:
        model: the policy with the weights that the stage starts from: make it before they train.
        spec: the stage.
        ranks: the processes that train together; each scores the whole round.
        seed: of the critic's minibatches.

    Attributes:
        reference: the frozen model: the starting weights, or those that `refer` was given.
        critic: the value model, or None.
    """

    def __init__(
        self,
        model: Decoder,
        spec: Rl,
        *,
        ranks: Ranks = ALONE,
        seed: int = 0,
    ):
        self.model, self.objective, self.ranks = model, spec.objective, ranks
        self.reference: Decoder | None = None
        if spec.objective.kl.reference is None:
            self.refer(model)
        self.critic: ValueModel | None = None
        objective = spec.objective
        if isinstance(objective, Ppo) and isinstance(objective.estimator, Gae):
            self.critic = ValueModel(model, spec, objective.critic, ranks=ranks, seed=seed)

    def refer(self, model: Decoder) -> None:
        """Keep a copy of a model's weights as the reference, where there is a KL term."""
        if self.objective.kl.beta:
            self.reference = frozen(model, self.ranks)

    @property
    def wants_old(self) -> bool:
        """Whether the trainer's own probabilities are asked for where the sampler's differ."""
        return not isinstance(self.objective.correction, Bypass)

    @property
    def always_old(self) -> bool:
        """Whether they are asked for at all events, since a correction compares the two."""
        correction = self.objective.correction
        return correction is not None and not isinstance(correction, Bypass | Opsm)

    def fill(
        self, samples: Sequence[Sample], temperature: float, rows: int, *, old: bool = False
    ) -> dict[str, float]:
        """Score a round.

        Args:
            samples: all of the round, the same on every rank; filled in place.
            temperature: of sampling.
            rows: attempts per forward.
            old: score the trainer's own probabilities: sampler and trainer have disagreed, or the
                sampler is behind.

        Returns:
            How far sampler and trainer are apart (`mismatch.figures`), where both are known.
        """
        seen = {}
        if self.always_old or (old and self.wants_old):
            score(self.model, samples, "old", temperature, rows)
            both = pack(samples)
            seen = mismatch.figures(both.logp_old, both.logp_roll, both.labels != IGNORED)
        if self.reference is not None:
            score(self.reference, samples, "ref", temperature, rows)
        if self.critic is not None:
            self.critic.score(samples, rows)
        return seen

    def learn(self, samples: Sequence[Sample], rows: int) -> dict[str, float]:
        """Teach the critic the round's returns; return its figures, none without a critic.

        While it warms up the policy stands still: all advantages become 0.
        """
        if self.critic is None:
            return {}
        warming = self.critic.warming
        seen = self.critic.learn(samples, rows)
        if warming:
            for sample in samples:
                sample.advantage = [0.0] * len(sample.ids)
        return seen

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside `tensors`, as JSON."""
        return {"rounds": 0 if self.critic is None else self.critic.rounds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state, whose tensors have been filled in."""
        if self.critic is not None:
            self.critic.rounds = state["rounds"]

    def tensors(self) -> dict[str, Tensor]:
        """The critic's weights and optimizer, live: writing into them restores."""
        return {} if self.critic is None else self.critic.tensors()


def frozen(model: Decoder, ranks: Ranks = ALONE) -> Decoder:
    """Copy a decoder that will not train, without its extra prediction block."""
    made = build.decoder(model.arch)
    made.load_state_dict(model.state_dict(), strict=True)
    made.mtp = None
    device = next(model.parameters()).device
    return shard(made.to(device).requires_grad_(requires_grad=False), ranks)


@torch.no_grad()
def score(
    model: Decoder, samples: Sequence[Sample], name: str, temperature: float, rows: int
) -> None:
    """Fill a field of all samples with a model's log-probability of each id; 0 where not masked."""
    order = sorted(samples, key=lambda sample: len(sample.ids))
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        batch = pack(part, device=next(model.parameters()).device, together=model.shares)
        how = {"labels": batch.labels, "segments": batch.segments, "pos": batch.pos}
        how |= {"routes": batch.routes if name == "old" else None}
        how |= {"temperature": temperature, "shared": batch.shared}
        logp = model(batch.ids, **how, mtp=False).logp.tolist()
        for sample, row in zip(part, logp, strict=True):
            setattr(sample, name, [0.0, *row[: len(sample.ids) - 1]])
