"""Rollouts as micro-batches: shifted labels, old log-probabilities, advantages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from etude.rl.rollout import Sample
from etude.typing import Float, Int

IGNORED = -100


@dataclass(frozen=True, slots=True)
class RlBatch:
    """One forward's worth of rollouts, a row each, padded on the right.

    Args:
        ids: prompt, the policy's tokens, observations.
        labels: the target of each position where the policy produced it, else -100.
        segments: 1, and 0 on padding.
        pos: position in the row.
        logp_old: log-probability of each label under the weights that sampled it.
        advantage: of the whole attempt, on each counted position.
        temperature: by which the logits are divided before log-probabilities.
        tokens: counted labels.
        rows_tokens: tokens that are not padding.
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


def pack(
    samples: Sequence[Sample],
    advantages: Sequence[float],
    *,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> RlBatch:
    """Put attempts into rows; position p holds what concerns token p + 1, its target."""
    shape = len(samples), max(len(sample.ids) for sample in samples)
    ids, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    labels = torch.full(shape, IGNORED)
    logp, advantage = (torch.zeros(shape) for _ in range(2))
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        ids[row, :n] = own = torch.tensor(sample.ids)
        segments[row, :n] = 1
        counted = torch.tensor(sample.mask)[1:]
        labels[row, : n - 1] = torch.where(counted, own[1:], IGNORED)
        logp[row, : n - 1] = torch.tensor(sample.logp)[1:]
        advantage[row, : n - 1] = counted * advantages[row]
    pos = torch.arange(shape[1]).expand(shape).contiguous()
    return RlBatch(
        *(tensor.to(device) for tensor in (ids, labels, segments, pos, logp, advantage)),
        temperature=temperature,
        tokens=int((labels != IGNORED).sum()),
        rows_tokens=int(segments.sum()),
    )


def micro_batches(
    samples: Sequence[Sample],
    advantages: Sequence[float],
    rows: int,
    *,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Iterator[RlBatch]:
    """Cut attempts into batches of at most `rows` per rank, like lengths together.

    Every rank gets equally many batches, since ranks that share weights must run forward together;
    one that is left without an attempt gets a row in which nothing is counted.
    """
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].ids))
    for start in range(0, len(order), rows * world):
        part = order[start : start + rows * world][rank::world]
        own = [samples[i] for i in part] or [_uncounted(samples[order[start]])]
        scores = [advantages[i] for i in part] or [0.0]
        yield pack(own, scores, temperature=temperature, device=device)


def _uncounted(sample: Sample) -> Sample:
    return replace(sample, mask=[False] * len(sample.ids))
