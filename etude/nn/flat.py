"""Flat passes: the tokens of several blocks of sequences as one row, which most modules see.

What looks across tokens runs once per block, see `Context.each`. The `index` of a block's context
must be whole, [B, T].
"""

from collections.abc import Sequence

import torch

from etude.nn.context import Context, Group
from etude.typing import Tensor


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Tokens [B, T, ...] of several blocks as one row [1, N, ...]; a single one stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)


def split(x: Tensor, blocks: Sequence[Context]) -> list[Tensor]:
    """The tokens of each block, [B, T, ...]; of a single one as they are."""
    if len(blocks) == 1:
        return [x]
    parts = x[0].split([ctx.index.numel() for ctx in blocks])
    return [part.unflatten(0, ctx.index.shape) for part, ctx in zip(parts, blocks, strict=True)]


def joint(blocks: Sequence[Context]) -> Context:
    """What a pass over the tokens of all blocks, flat unless there is one, tells the modules."""
    if len(blocks) == 1:
        return blocks[0]
    index = flat([ctx.index for ctx in blocks])
    places = split(torch.arange(index.shape[1], device=index.device).unsqueeze(0), blocks)
    groups = [Group(at, ctx) for at, ctx in zip(places, blocks, strict=True)]
    tables = {}
    for key in blocks[0].tables:
        pairs = [[_each(ctx, ctx.tables[key][n]) for ctx in blocks] for n in (0, 1)]
        tables[key] = flat(pairs[0]), flat(pairs[1])
    return Context(tables, index, causal=False, cache=blocks[0].cache, groups=groups)


def _each(ctx: Context, part: Tensor) -> Tensor:
    """A part [#B, T, ...] of a context, for each of its rows."""
    return part.expand(len(ctx.index), *part.shape[1:])
