"""The policy loss of a stage, in the form the training loop takes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from etude.nn.decoder import Scores
from etude.objectives import aggregate, policy
from etude.recipe.stages import Rl
from etude.rl.batch import IGNORED, RlBatch


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Clipped policy loss over group advantages (`objectives.policy`), token or sequence mean.

    Args:
        low, high: clip widths.
        aggregate: `token`, or `sequence` for the mean of each attempt's own mean.
    """

    low: float
    high: float
    aggregate: aggregate.Aggregate

    def __call__(self, scores: Scores, batch: RlBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each position's weighted loss, 0 where not counted, and values to log."""
        mask = batch.labels != IGNORED
        clip = {"low": self.low, "high": self.high}
        loss, seen = policy.ppo(scores.logp, batch.logp_old, batch.advantage, mask, **clip)
        return loss * aggregate.weights(mask, self.aggregate), seen

    def denominator(self, batch: RlBatch) -> float:
        """Return this batch's part of what the step's loss is divided by: tokens or attempts."""
        mask: Tensor = batch.labels != IGNORED
        return float(torch.sum(aggregate.weights(mask, self.aggregate)))


def policy_objective(spec: Rl) -> PolicyObjective:
    """Return the stage's objective."""
    grpo = spec.objective
    return PolicyObjective(grpo.clip_low, grpo.clip_high, grpo.aggregate)
