"""Rows that begin alike, in one pass over the tokens that differ: a common beginning is read once.

Answers to one prompt are rows whose first tokens are the same, and so is all that a model of causal
attention makes of them. Here these stand once among the tokens of the pass, which are one flat row
without padding. Attention alone looks across tokens: it gets the beginnings as rows of their own,
and then, for the rest of each row, the keys and values of the whole row.

The gradient of a beginning is the sum over its rows: as if each had been read by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from etude.typing import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from etude.nn.context import Context


@dataclass(frozen=True, slots=True)
class Shared:
    """Where the tokens of padded rows [B, T] stand in the flat row of N, and back.

    Attributes:
        tokens: [N], place b T + t of each flat token in the rows.
        rows: [B, T], place of each token in the flat row; that of some token where there is none.
        first: [P, F], those of the beginnings, padded on the right.
        rest: [B, R], those of what follows in each row, padded on the right.
        index: [B, R], place of each of them in its row.
        reads: [B, 1, R, T], which tokens of its row each of them reads.
        collect: [N], where each flat token is among the results for `first` and `rest`.
    """

    tokens: Int[Tensor, " N"]
    rows: Int[Tensor, "B T"]
    first: Int[Tensor, "P F"]
    rest: Int[Tensor, "B R"]
    index: Int[Tensor, "B R"]
    reads: Bool[Tensor, "B 1 R T"]
    collect: Int[Tensor, " N"]

    def take(self, x: Tensor) -> Tensor:
        """Return what belongs to the tokens as one flat row [1, N, ...], of padded rows [B, T]."""
        return x.flatten(0, 1).index_select(0, self.tokens).unsqueeze(0)

    def spread(self, x: Tensor) -> Tensor:
        """Return what a flat row [1, N, ...] says of each token in its padded row [B, T, ...]."""
        return _at(x, self.rows)

    def attend(
        self,
        mix: Callable[..., Float[Tensor, "B T H K"]],
        ctx: "Context",
        q: Float[Tensor, "1 N H K"],
        k: Float[Tensor, "1 N G K"],
        v: Float[Tensor, "1 N G K"],
    ) -> Float[Tensor, "1 N H K"]:
        """Let tokens look at those before them in their rows.

        Args:
            mix: attention of queries to keys and values under a context.
            ctx: of the flat pass.
            q, k, v: what the tokens bring.
        """
        own = {"tables": {}, "routes": None, "replay": None, "shared": None}
        steps = torch.arange(self.first.shape[1], device=self.first.device).unsqueeze(0)
        begin = replace(ctx, index=steps, **own)
        first = mix(begin, *(_at(part, self.first) for part in (q, k, v)))
        follow = replace(ctx, index=self.index, mask=self.reads, causal=False, **own)
        rest = mix(follow, _at(q, self.rest), _at(k, self.rows), _at(v, self.rows))
        made = torch.cat([first.flatten(0, 1), rest.flatten(0, 1)])
        return made.index_select(0, self.collect).unsqueeze(0)


def share(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], *, device: torch.device | str = "cpu"
) -> Shared:
    """Find equal beginnings.

    Args:
        rows: ids of each row.
        lengths: tokens of the beginning of each, which are one at least and fewer than the row's.
            Rows with equal beginnings of equal length share it.
        device: of the result.
    """
    width = max(map(len, rows))
    starts: dict[tuple[int, ...], int] = {}  # flat place of each beginning
    tokens, table, first = list[int](), list[list[int]](), list[list[int]]()
    for b, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
        key = tuple(ids[:length])
        if key not in starts:
            starts[key] = len(tokens)
            tokens += range(b * width, b * width + length)
            first.append([*range(starts[key], len(tokens))])
        places = [*range(starts[key], starts[key] + length)]
        places += range(len(tokens), len(tokens) + len(ids) - length)
        tokens += range(b * width + length, b * width + len(ids))
        table.append(_filled(places, width))
    deep, most = max(map(len, first)), max(len(r) - n for r, n in zip(rows, lengths, strict=True))
    collect = torch.empty(len(tokens), dtype=torch.long)
    for p, places in enumerate(first):
        collect[places] = torch.arange(p * deep, p * deep + len(places))
    begin, at, steps = len(first) * deep, torch.tensor(table), torch.arange(most)
    index = (torch.tensor(lengths).unsqueeze(1) + steps).clamp_max(width - 1)  # [B, R]
    rest = at.gather(1, index)
    for b, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
        count = len(ids) - length
        collect[rest[b, :count]] = begin + b * most + steps[:count]
    reads = torch.arange(width) <= index[:, None, :, None]
    starting = torch.tensor([_filled(places, deep) for places in first])
    made = torch.tensor(tokens), at, starting, rest, index, reads, collect
    return Shared(*(part.to(device) for part in made))


def _filled(places: list[int], width: int) -> list[int]:
    return places + [places[-1]] * (width - len(places))


def _at(x: Tensor, places: Int[Tensor, "B T"]) -> Tensor:
    """What a flat row [1, N, ...] has at places, [B, T, ...]."""
    return x[0].index_select(0, places.flatten()).unflatten(0, places.shape)
