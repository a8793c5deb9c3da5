"""Conversations as padded rows, one each: what preference and distillation train on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from etude.objectives.language import IGNORE
from etude.typing import Float, Int, Tensor


@dataclass(frozen=True, slots=True)
class Told:
    """One conversation in ids, and which of them an answer consists of.

    Attributes:
        ids: tokens.
        mask: true on those of the answer.
    """

    ids: list[int]
    mask: list[bool]

    @property
    def length(self) -> int:
        """Tokens of the answer that can be targets; the first of a row cannot."""
        return sum(self.mask[1:])


@dataclass(frozen=True, slots=True)
class Rows:
    """A micro-batch, `train.step.Micro`; position p holds what concerns its target, token p + 1.

    Attributes:
        ids, labels, segments, pos: as the trainer takes them.
        tokens: labels that count.
        reference: log-probability of each label under the reference, of pairs.
        teacher: number of each row's teacher.
        top_ids, top_logp: the teacher's likeliest tokens at each position.
    """

    ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]
    pos: Int[Tensor, "B T"]
    tokens: int
    reference: Float[Tensor, "B T"] | None = None
    teacher: Int[Tensor, " B"] | None = None
    top_ids: Int[Tensor, "B T K"] | None = None
    top_logp: Float[Tensor, "B T K"] | None = None


def rows(told: Sequence[Told], *, last: bool = False) -> Rows:
    """Put conversations into rows, padded on the right.

    Args:
        told: conversations.
        last: count the last token of each alone, at its own position: where a reward is read.
    """
    shape = len(told), max(len(one.ids) for one in told)
    ids, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    labels = torch.full(shape, IGNORE)
    for row, one in enumerate(told):
        n = len(one.ids)
        ids[row, :n] = own = torch.tensor(one.ids)
        segments[row, :n] = int(any(one.mask))  # what only keeps ranks in step loads no expert
        counted = torch.tensor(one.mask)
        if last:
            labels[row, n - 1] = own[-1] if bool(counted.any()) else IGNORE
        else:
            labels[row, : n - 1] = torch.where(counted[1:], own[1:], IGNORE)
    pos = torch.arange(shape[1]).expand(shape).contiguous()
    return Rows(ids, labels, segments, pos, int((labels != IGNORE).sum()))


def padded(values: Sequence[Sequence[float]], width: int) -> Float[Tensor, "B T"]:
    """Values by position in rows of `width`, 0 behind the end."""
    found = torch.zeros(len(values), width)
    for row, own in enumerate(values):
        found[row, : len(own)] = torch.tensor(own)
    return found


def uncounted(one: Told) -> Told:
    """The same tokens as padding, with nothing to learn: what keeps ranks in step."""
    return Told(one.ids, [False] * len(one.ids))
