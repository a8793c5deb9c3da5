"""What each token of a round was worth: rewards in, `Sample.advantage` and `.returns` out.

The estimators are in `objectives.advantage` and `objectives.value`. Those of a group look at the
answers to one problem, the others at all tokens of the round.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etude.errors import EtudeError
from etude.objectives import advantage, kl, value
from etude.recipe import objectives as kinds
from etude.rl.rollout import Sample

Groups = Sequence[Sequence[Sample]]


def assign(groups: Groups, spec: kinds.Kind) -> dict[str, float]:
    """Fill `advantage` of every sample, and `returns` where there is a critic.

    A KL term that goes into the reward is taken off here: off each token where rewards are per
    token (`reinforce_pp`, `gae`), summed off the whole answer's elsewhere.

    Args:
        groups: the answers to each problem, equally many; `reward` is filled, and `ref`, `value`
            and `terms` as far as the objective asks for them.
        spec: the stage's objective.

    Returns:
        The round's figures: mean and deviation of advantages over trained tokens, and of the KL
        term that was taken off.

    Raises:
        EtudeError: a reward that is not finite, one answer where a group is compared, or a
            reference, value or reward part that is missing.
    """
    if not groups or not groups[0]:
        return {}
    _check(groups, spec)
    estimator, seen = spec.estimator, {}
    if spec.kl.beta and spec.kl.into == "reward":
        penalties = [_penalty(sample, spec.kl) for group in groups for sample in group]
        tokens = sum(sample.length for group in groups for sample in group)
        seen["kl_reward"] = sum(map(sum, penalties)) / max(tokens, 1)
    else:
        penalties = None
    if isinstance(estimator, kinds.Returns | kinds.Gae):
        _per_token([sample for group in groups for sample in group], penalties, estimator)
    else:
        _per_answer(groups, penalties, estimator)
    return seen | _figures(groups)


def useful(group: Sequence[Sample]) -> bool:
    """Whether any token of a group has an advantage; without one it would only be averaged in."""
    return any(any(sample.advantage or ()) for sample in group)


def _check(groups: Groups, spec: kinds.Kind) -> None:
    for sample in (sample for group in groups for sample in group):
        for name, reward in {"reward": sample.reward, **sample.terms}.items():
            if not math.isfinite(reward):
                do = "a reward must be a finite number"
                raise EtudeError("rewards", f"{name} is {reward}", do=do, code=1)
    name, fewest = kinds.needs_group(spec), min(len(group) for group in groups)
    if name and fewest < 2:
        do = "write 2 or more, or an objective without a group: ppo, reinforce_pp"
        found = f"{fewest} answer, but {name} compares the answers to one problem"
        raise EtudeError("rollout.per_prompt", found, do=do)


def _penalty(sample: Sample, spec: kinds.Kl) -> list[float]:
    """The weighted KL estimate of each id at the time of sampling, 0 where not masked."""
    if not sample.length:
        return [0.0] * len(sample.ids)
    if sample.ref is None:
        raise EtudeError("objective.kl", "no reference has scored the round", code=1)
    old = torch.tensor([sample.logp if sample.old is None else sample.old])
    mask = torch.tensor([sample.mask])
    form: Any = spec.estimator
    return (spec.beta * kl.estimate(old, torch.tensor([sample.ref]), mask, form))[0].tolist()


def _per_answer(groups: Groups, penalties: list[list[float]] | None, estimator: Any) -> None:
    sizes = {len(group) for group in groups}
    if len(sizes) > 1:
        found = f"groups of {', '.join(map(str, sorted(sizes)))} answers"
        raise EtudeError("rollout.per_prompt", found, "equally many for each problem", code=1)
    reward = torch.tensor([[sample.reward for sample in group] for group in groups])
    if penalties is not None:
        reward = reward - torch.tensor([sum(row) for row in penalties]).view_as(reward)
    for group, row in zip(groups, _compare(groups, reward, estimator).tolist(), strict=True):
        for sample, score in zip(group, row, strict=True):
            sample.advantage = [score * own for own in sample.mask]
            sample.returns = None


def _compare(groups: Groups, reward: Tensor, estimator: Any) -> Tensor:
    """Advantages [P, O] by the estimator's name."""
    match estimator:
        case kinds.Group(unbiased=unbiased, eps=eps):
            return advantage.group(reward, unbiased=unbiased, eps=eps)
        case kinds.GroupCentre():
            return advantage.group(reward, std=False)
        case kinds.GroupMeanBatchStd(unbiased=unbiased, eps=eps):
            return advantage.group_mean_batch_std(reward, unbiased=unbiased, eps=eps)
        case kinds.LeaveOneOut(std=std, unbiased=unbiased, eps=eps):
            return advantage.leave_one_out(reward, std=std, unbiased=unbiased, eps=eps)
        case kinds.ReturnsBaseline(unbiased=unbiased):
            lengths = torch.tensor([[sample.length for sample in group] for group in groups])
            return advantage.reinforce_pp_baseline(reward, lengths, unbiased=unbiased)
        case kinds.Decoupled(weights=weights, unbiased=unbiased, eps=eps):
            try:
                return advantage.decoupled(_terms(groups), weights, unbiased=unbiased, eps=eps)
            except ValueError as error:
                raise EtudeError("objective.advantage", str(error)) from error
    raise AssertionError(estimator)


def _terms(groups: Groups) -> dict[str, Tensor]:
    """Each named part of the reward [P, O]; one that an answer lacks counts as 0 there."""
    names = sorted({name for group in groups for sample in group for name in sample.terms})
    return {
        name: torch.tensor([[sample.terms.get(name, 0.0) for sample in group] for group in groups])
        for name in names
    }


def _per_token(
    samples: Sequence[Sample],
    penalties: list[list[float]] | None,
    estimator: kinds.Returns | kinds.Gae,
) -> None:
    """The reward stands on an answer's last token; what was taken off, on each."""
    width = max(len(sample.ids) for sample in samples)
    mask = torch.zeros(len(samples), width, dtype=torch.bool)
    reward, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        mask[row, :n] = torch.tensor(sample.mask)
        if penalties is not None:
            reward[row, :n] = -torch.tensor(penalties[row])
        if sample.length:
            last = n - 1 - sample.mask[::-1].index(True)
            reward[row, last] += sample.reward
        if isinstance(estimator, kinds.Gae) and sample.length:
            if sample.value is None:
                raise EtudeError("objective.advantage", "no critic has scored the round", code=1)
            values[row, :n] = torch.tensor(sample.value)
    if isinstance(estimator, kinds.Gae):
        how = {"gamma": estimator.gamma, "lam": estimator.lam}
        last = _after(samples) if estimator.bootstrap else None
        scores, returns = value.gae(reward, values, mask, last=last, **how)
        scores = value.whiten(scores, mask) if estimator.whiten else scores
    else:
        returns = advantage.returns_to_go(reward, mask, gamma=estimator.gamma)
        scores = value.whiten(returns, mask, unbiased=estimator.unbiased)
    for sample, row, wanted in zip(samples, scores.tolist(), returns.tolist(), strict=True):
        sample.advantage, sample.returns = row[: len(sample.ids)], wanted[: len(sample.ids)]


def _after(samples: Sequence[Sample]) -> Tensor:
    """Value after the last token of answers that were cut, 0 after the others' end."""
    return torch.tensor([s.beyond if s.status == "truncated" else 0.0 for s in samples])


def _figures(groups: Groups) -> dict[str, float]:
    """Mean and deviation over trained tokens."""
    found = [
        score
        for group in groups
        for sample in group
        for score, own in zip(sample.advantage or (), sample.mask, strict=True)
        if own
    ]
    if not found:
        return {}
    scores = torch.tensor(found)
    return {
        "advantage": float(scores.mean()),
        "advantage_std": float(scores.std(unbiased=False)),
    }
