"""Rollouts as micro-batches: shifted labels, log-probabilities, advantages, totals of the step."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from etude.nn.shared import Shared, share
from etude.objectives.aggregate import Step
from etude.rl.rollout import Sample
from etude.typing import Bool, Float, Int

IGNORED = -100
WORTH = 0.9  # share of the padded rows up to which a pass over what differs is the faster one
# sample; ratio, whether clipped and entropy of each token that it was trained on
Note = Callable[[Sample, list[float], list[bool], list[float] | None], None]


@dataclass(frozen=True, slots=True)
class RlBatch:
    """One forward's worth of rollouts, a row each, padded on the right.

    Args:
        ids: prompt, the policy's tokens, observations.
        labels: the target of each position where the policy produced it, else -100.
        segments: 1, and 0 on padding.
        pos: position in the row.
        logp_old: log-probability of each label under the weights at the start of the update.
        advantage: of each counted position's label.
        temperature: by which the logits are divided before log-probabilities.
        tokens: counted labels.
        rows_tokens: tokens that are not padding.
        logp_roll: log-probability of each label as the sampler gave it.
        ref: the same under the frozen reference; None = there is none.
        value, returns: what the critic said before each label, and should have said; None likewise.
        real: false on rows that only keep ranks in step.
        group_tokens: counted labels of all answers to a row's problem, in the whole step.
        step: totals of the whole step, over all micro-batches and ranks.
        samples: whose rows these are, in order.
        note: takes what the update saw of each recorded sample; None = nobody asks.
        routes: experts that the sampler chose for each token, -1 where unknown; None = not asked.
        shared: which rows answer the same prompt, for a model that reads it once; None = none.
    """

    ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]
    pos: Int[Tensor, "B T"]
    logp_old: Float[Tensor, "B T"]
    advantage: Float[Tensor, "B T"]
    temperature: float
    tokens: int
    rows_tokens: int
    logp_roll: Float[Tensor, "B T"]
    ref: Float[Tensor, "B T"] | None
    value: Float[Tensor, "B T"] | None
    returns: Float[Tensor, "B T"] | None
    real: Bool[Tensor, " B"]
    group_tokens: Float[Tensor, " B"]
    step: Step
    samples: tuple[Sample, ...]
    note: Note | None = None
    routes: Int[Tensor, "B T L A"] | None = None
    shared: Shared | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What weights need of a whole step.

    Args:
        step: trained tokens, and attempts that have one.
        groups: trained tokens by problem. A problem is known by its prompt.
    """

    step: Step
    groups: Counter[tuple[int, ...]]


def totals(samples: Sequence[Sample]) -> Totals:
    """Count a step's attempts."""
    groups: Counter[tuple[int, ...]] = Counter()
    lengths = [_trained(sample) for sample in samples]
    for sample, length in zip(samples, lengths, strict=True):
        groups[_problem(sample)] += length
    return Totals(Step(sum(lengths), sum(length > 0 for length in lengths)), groups)


def pack(
    samples: Sequence[Sample],
    *,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
    whole: Totals | None = None,
    real: bool = True,
    note: Note | None = None,
    together: bool = False,
) -> RlBatch:
    """Put attempts into rows; position p holds what concerns token p + 1, its target.

    Args:
        samples: one per row; advantages that were not given count as 0.
        temperature: of sampling.
        device: of the tensors.
        whole: totals of the step; None = these samples are all of it.
        real: whether they count as sequences.
        note: see `RlBatch`.
        together: rows share their prompts where that saves something.
    """
    shape = len(samples), max(len(sample.ids) for sample in samples)
    whole = whole or totals(samples)
    ids, labels, segments = _tokens(samples, shape)
    pos = torch.arange(shape[1]).expand(shape).contiguous()
    roll = [sample.logp for sample in samples]
    old = [sample.logp if sample.old is None else sample.old for sample in samples]
    each = [old, [sample.advantage for sample in samples]]
    optional = [[getattr(s, name) for s in samples] for name in ("ref", "value", "returns")]
    filled = [_rows(rows, labels, device) for rows in (*each, roll)]
    more = [None if None in rows else _rows(rows, labels, device) for rows in optional]
    ids, labels, segments, pos = (t.to(device) for t in (ids, labels, segments, pos))
    return RlBatch(
        ids,
        labels,
        segments,
        pos,
        *filled[:2],
        temperature=temperature,
        tokens=int((labels != IGNORED).sum()),
        rows_tokens=int(segments.sum()),
        logp_roll=filled[2],
        ref=more[0],
        value=more[1],
        returns=more[2],
        real=torch.full((len(samples),), real, device=device),
        group_tokens=torch.tensor(
            [float(whole.groups[_problem(sample)]) for sample in samples], device=device
        ),
        step=whole.step,
        samples=tuple(samples),
        note=note,
        routes=_routes(samples, shape[1], device),
        shared=_shared(samples, device) if together else None,
    )


def micro_batches(
    samples: Sequence[Sample],
    rows: int,
    *,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    note: Note | None = None,
    together: bool = False,
) -> Iterator[RlBatch]:
    """Cut one step's attempts into batches of at most `rows` per rank, like lengths together.

    With `together` it is attempts at one problem that stay together, by the longest of them, since
    padding costs little then. Every rank gets equally many batches, since ranks that share weights
    must run forward together; one that is left without an attempt gets a row in which nothing is
    counted. All ranks are given all attempts of the step.
    """
    order = sorted(samples, key=lambda sample: len(sample.ids))
    how: dict[str, Any] = {"temperature": temperature, "device": device, "note": note}
    how |= {"whole": totals(samples), "together": together}
    if together:
        longest = {_problem(sample): len(sample.ids) for sample in order}
        order.sort(key=lambda sample: (longest[_problem(sample)], _problem(sample)))
    for start in range(0, len(order), rows * world):
        own = order[start : start + rows * world][rank::world]
        if own:
            yield pack(own, **how)
        else:
            yield pack([_uncounted(order[start])], real=False, **how)


def _tokens(samples: Sequence[Sample], shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, the labels of what the policy wrote, and segments."""
    ids, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    labels = torch.full(shape, IGNORED)
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        ids[row, :n] = own = torch.tensor(sample.ids)
        segments[row, :n] = 1
        labels[row, : n - 1] = torch.where(torch.tensor(sample.mask)[1:], own[1:], IGNORED)
    return ids, labels, segments


def _rows(
    rows: Sequence[Sequence[float] | None], labels: Tensor, device: torch.device | str
) -> Tensor:
    """Values per id as values per position before it, zero where no label is counted."""
    made = torch.zeros(labels.shape)
    for row, values in enumerate(rows):
        if values is not None:
            made[row, : len(values) - 1] = torch.tensor(values, dtype=torch.float32)[1:]
    return torch.where(labels != IGNORED, made, 0.0).to(device)


def _routes(
    samples: Sequence[Sample], width: int, device: torch.device | str
) -> Int[Tensor, "B T L A"] | None:
    """Experts by position, which is the id that is read there."""
    known = [sample.routes for sample in samples if sample.routes is not None]
    if not known:
        return None
    made = torch.full((len(samples), width, *known[0].shape[1:]), -1)
    for row, sample in enumerate(samples):
        if sample.routes is not None:
            made[row, : len(sample.routes)] = sample.routes
    return made.to(device)


def _shared(samples: Sequence[Sample], device: torch.device | str) -> Shared | None:
    """Find attempts at one problem, unless too little would be saved."""
    lengths = [min(sample.prompt, len(sample.ids) - 1) for sample in samples]
    starts = {tuple(s.ids[:n]): n for s, n in zip(samples, lengths, strict=True)}
    count = sum(len(s.ids) - n for s, n in zip(samples, lengths, strict=True))
    padded = len(samples) * max(len(sample.ids) for sample in samples)
    if min(lengths) < 1 or count + sum(starts.values()) > WORTH * padded:
        return None
    return share([sample.ids for sample in samples], lengths, device=device)


def _trained(sample: Sample) -> int:
    return sum(sample.mask[1:])  # nothing predicts the first id


def _problem(sample: Sample) -> tuple[int, ...]:
    return tuple(sample.ids[: sample.prompt])


def _uncounted(sample: Sample) -> Sample:
    return replace(sample, mask=[False] * len(sample.ids), key="")
