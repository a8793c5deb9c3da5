"""The policy loss of a stage, in the form the training loop takes.

Of each token: the loss of the objective's kind, times what corrects for the sampler, plus the pull
to the reference, minus the entropy bonus; all of it times the token's weight in the mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etude.errors import EtudeError
from etude.nn.decoder import Scores
from etude.objectives import aggregate, kl, mismatch, policy, policy_sequence, policy_weight
from etude.recipe import objectives as kinds
from etude.recipe.stages import Rl
from etude.rl.batch import IGNORED, RlBatch
from etude.typing import Bool

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
CLIPS = ("clipped_low", "clipped_high", "clipped_dual", "dropped")


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """A policy loss (`objectives.policy*`) over the advantages that the batch carries.

    Args:
        spec: the stage's objective.
        constant: tokens that every attempt counts as under the aggregate `constant`.
    """

    spec: kinds.Kind
    constant: int = 1

    @property
    def entropy(self) -> bool:
        """Whether the loop must have entropies computed."""
        return self.spec.entropy > 0

    def __call__(self, scores: Scores, batch: RlBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each position's weighted loss, 0 where not counted, and values to log."""
        spec, mask = self.spec, batch.labels != IGNORED
        bypass = isinstance(spec.correction, kinds.Bypass)
        old = batch.logp_roll if bypass else batch.logp_old
        loss, seen = loss_of(spec)(scores.logp, old, batch.advantage, mask)
        if spec.correction is not None and not bypass:
            weight = correct(spec.correction, scores.logp, batch, mask)
            loss = weight * loss
            seen |= {"corrected": mask & (weight == 0)}
        if batch.ref is not None:
            now = scores.logp.detach(), batch.ref, mask
            seen |= {"kl": kl.estimate(*now, "k3"), "kl_k1": kl.estimate(*now, "k1")}
        if spec.kl.beta and spec.kl.into == "loss":
            if batch.ref is None:
                raise EtudeError("objective.kl", "no reference has scored the round", code=1)
            form: Any = spec.kl.estimator
            loss = loss + spec.kl.beta * kl.estimate(scores.logp, batch.ref, mask, form)
        if self.entropy:
            assert scores.entropy is not None
            loss = loss - spec.entropy * torch.where(mask, scores.entropy, 0.0)
        if batch.note is not None:
            _tell(batch, seen, getattr(scores, "entropy", None), mask)
        return loss * aggregate.weights(mask, spec.aggregate, **_known(batch)), seen

    def denominator(self, batch: RlBatch) -> float:
        """Return this batch's part of what the step's loss is divided by."""
        known = _known(batch) | {"rows": batch.real, "constant": self.constant}
        return aggregate.denominator(batch.labels != IGNORED, self.spec.aggregate, **known)


def policy_objective(spec: Rl) -> PolicyObjective:
    """Return the stage's objective."""
    longest = spec.rollout.max_tokens * max(one.turns for one in spec.environments)
    return PolicyObjective(spec.objective, spec.objective.constant or longest)


def loss_of(spec: kinds.Kind) -> Loss:
    """Return the loss of an objective's kind: (logp, old, advantage, mask) -> loss, values."""

    def loss(*batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        match spec:
            case kinds.Gspo():
                return policy_sequence.gspo(*batch, low=spec.clip_low, high=spec.clip_high)
            case kinds.GspoToken():
                return policy_sequence.gspo_token(*batch, low=spec.clip_low, high=spec.clip_high)
            case kinds.Cispo():
                bounds = {"weight_min": spec.weight_min, "weight_max": spec.weight_max}
                dropped = {"drop_low": spec.drop_low, "drop_high": spec.drop_high}
                return policy_weight.cispo(*batch, **bounds, **dropped)
            case kinds.MirrorDescent():
                how: Any = {"scale": spec.scale, "by_length": spec.by_length}
                return policy_sequence.mirror_descent(*batch, tau=spec.tau, **how)
            case kinds.MaskedLogRatio():
                window = {"ratio_min": spec.ratio_min, "ratio_max": spec.ratio_max}
                return policy_weight.masked_log_ratio(*batch, tau=spec.tau, **window)
            case _:
                dual = getattr(spec, "dual", None)
                return policy.ppo(*batch, low=spec.clip_low, high=spec.clip_high, dual=dual)

    return loss


def correct(
    spec: kinds.Correction, logp: Tensor, batch: RlBatch, mask: Bool[Tensor, "B T"]
) -> Tensor:
    """Return what each token's loss is multiplied by, without gradient."""
    pair = batch.logp_old, batch.logp_roll, mask
    match spec:
        case kinds.TisToken(cap=cap):
            return mismatch.tis_token(*pair, cap=cap)
        case kinds.MaskToken(low=low, high=high):
            return mismatch.mask_token(*pair, low=low, high=high)
        case kinds.TisSequence(cap=cap):
            return mismatch.tis_sequence(*pair, cap=cap)
        case kinds.MaskSequence(cap=cap):
            return mismatch.mask_sequence(*pair, cap=cap)
        case kinds.MaskGeometric(low=low, high=high):
            return mismatch.mask_geometric(*pair, low=low, high=high)
        case kinds.Opsm(delta=delta):
            return mismatch.opsm(logp, batch.logp_old, batch.advantage, mask, delta=delta)
    raise AssertionError(spec)


def _known(batch: RlBatch) -> dict[str, Any]:
    return {"group_tokens": batch.group_tokens, "step": batch.step}


def _tell(batch: RlBatch, seen: dict[str, Tensor], entropy: Tensor | None, mask: Tensor) -> None:
    """Hand what the update saw to the record, of samples that are recorded."""
    assert batch.note is not None
    clips = [seen[name] for name in CLIPS if name in seen]
    clipped = torch.stack(clips).any(0) if clips else torch.zeros_like(mask)
    for row, sample in enumerate(batch.samples):
        if sample.key:
            own = mask[row]
            spread = None if entropy is None else entropy[row][own].tolist()
            batch.note(sample, seen["ratio"][row][own].tolist(), clipped[row][own].tolist(), spread)
