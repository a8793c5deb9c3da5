"""Banded attention: a query reads the last tokens, and with a stride some far ones.

Query i reads key j if i - width < j <= i, or if j <= i and i - j is a multiple of the stride
(arXiv:2005.14165, section 2.1, after arXiv:1904.10509). The reference is one mask over all keys.
Its fast twins cost O(T width): in a pass over whole rows, blocks of `width` queries that read their
own block and the one before; with earlier tokens in a cache, the few slots that can be read.
"""

import math

import torch
import torch.nn.functional as F

from etude.ops.attention import attend, attend_reference
from etude.ops.select import banded_twin
from etude.ops.wide import at_least_float32
from etude.typing import Bool, Float, Int, Tensor


def attend_banded(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    *,
    width: int,
    stride: int | None = None,
    index: Int[Tensor, "#B T"],
    mask: Bool[Tensor, "#B 1 T S"] | None = None,
    segments: Int[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """Attention within the band, by the twin that fits.

    Args:
        q, k, v: heads; query head j reads key head j // (H / G). With S > T the first S - T keys,
            or fewer in some rows, are of earlier passes.
        width: keys that a query reads, itself included.
        stride: distance of the further keys; None reads none.
        index: place of each query in its row; key s of a row stands at place s.
        mask: what may be read at all. None reads everything up to a query's own place: the last
            key where one query stands behind earlier tokens.
        segments: document of each token where the mask is one of documents, and S equals T.
        scale: multiplies the scores; None is 1 / sqrt(K).
    """
    new, stored = q.shape[2], k.shape[2]
    if new == stored and (mask is None or segments is not None):
        if new <= width:  # the band cuts nothing off
            return attend(q, k, v, mask=mask, causal=mask is None, scale=scale)
        if banded_twin(new, width, stride) == "blocks":
            if stride is None:
                return attend_blocks(q, k, v, width=width, segments=segments, scale=scale)
            return attend_strided(
                q, k, v, width=width, stride=stride, segments=segments, scale=scale
            )
    if new < stored:
        if mask is None and new == 1:
            return attend(q, *_seen(k, v, width=width, stride=stride), scale=scale)
        if stride is None and stored > 2 * (width + new):
            k, v, mask = _recent(k, v, index, width=width)
            return attend(q, k, v, mask=mask, scale=scale)
    near = band(index, torch.arange(stored, device=k.device)[None], width=width, stride=stride)
    return attend(q, k, v, mask=near if mask is None else near & mask, scale=scale)


def attend_banded_reference(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    *,
    width: int,
    stride: int | None = None,
    index: Int[Tensor, "#B T"],
    mask: Bool[Tensor, "#B 1 T S"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """The same, as the definition reads: every score, and a mask that leaves the band."""
    keys = torch.arange(k.shape[2], device=k.device)[None]
    near = band(index, keys, width=width, stride=stride)
    return attend_reference(q, k, v, mask=near if mask is None else near & mask, scale=scale)


def band(
    index: Int[Tensor, "#B T"], keys: Int[Tensor, "#B S"], *, width: int, stride: int | None = None
) -> Bool[Tensor, "#B 1 T S"]:
    """Tell which of the keys at places `keys` the queries at places `index` read."""
    back = (index[:, :, None] - keys[:, None, :]).unsqueeze(1)
    near = back < width
    if stride is not None:
        near = near | (back % stride == 0)
    return near & (back >= 0)


def attend_blocks(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    *,
    width: int,
    segments: Int[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """Blocks of `width` queries against their own block and the one before: O(T width).

    The first block stands alone, for nothing is before it; so one mask serves all the others.
    """
    rows, length = q.shape[0], q.shape[2]
    first = (x[:, :, :width] for x in (q, k, v))
    mask, inner = None, _reach(width, q.device)[None, None]
    if segments is not None:
        at = segments[:, None, :, None]
        own = at[:, :, :width]
        mask = (own == own.transpose(-1, -2)) & inner[..., width:]
        same = _blocks(at[:, :, width:], width) == _pairs(at, width)[:, :, 1:].transpose(-1, -2)
        inner = same.squeeze(1).flatten(0, 1).unsqueeze(1) & inner
    head = attend(*first, mask=mask, causal=mask is None, scale=scale)
    rest = (_blocks(q[:, :, width:], width), *(_pairs(x, width)[:, :, 1:] for x in (k, v)))
    folded = (x.transpose(1, 2).flatten(0, 1) for x in rest)  # [B (M - 1), H, W or 2 W, K]
    y = attend(*folded, mask=inner, scale=scale)
    y = y.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)
    return torch.cat((head, y), dim=2)[:, :, :length]


def attend_strided(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    *,
    width: int,
    stride: int,
    segments: Int[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """The band, and every `stride`-th key before it, under one softmax: O(T (width + T / stride)).

    Places that differ by multiples of the stride form a row of their own, in which attention is
    plainly causal; its scores stand beside those of the band.
    """
    length, repeat = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    if segments is None:
        segments = torch.zeros(q.shape[0], length, dtype=torch.long, device=q.device)
    at = segments[:, None, :, None]  # like one number per token of one head: [B, 1, T, 1]

    same = _blocks(at, width) == _pairs(at, width, fill=-1).transpose(-1, -2)
    near = _blocks(q, width) @ _pairs(k, width).transpose(-1, -2)  # [B, H, M, W, 2 W]
    near = near.masked_fill(~(same & _reach(width, q.device)), -math.inf)
    near = near.flatten(2, 3)[:, :, :length]

    same = _lanes(at, stride) == _lanes(at, stride).transpose(-1, -2)
    far = _lanes(q, stride) @ _lanes(k, stride).transpose(-1, -2)  # [B, H, s, N, N]
    step = torch.arange(far.shape[-1], device=q.device) * stride
    far = far.masked_fill(~(same & (step[:, None] - step >= width)), -math.inf)
    far = far.transpose(2, 3).flatten(2, 3)[:, :, :length]

    wide = at_least_float32(q)
    share = torch.cat((near, far), dim=-1).softmax(-1, dtype=wide).to(q.dtype)
    near, far = share.split((near.shape[-1], far.shape[-1]), dim=-1)
    y = (_blocks(near, width) @ _pairs(v, width)).flatten(2, 3)[:, :, :length]
    z = (_lanes(far, stride) @ _lanes(v, stride)).transpose(2, 3)
    return y + z.flatten(2, 3)[:, :, :length]


def _blocks(x: Tensor, width: int) -> Tensor:
    """Cut [B, H, T, K] into blocks [B, H, M, width, K]; the last one is filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % width)).unflatten(2, (-1, width))


def _pairs(x: Tensor, width: int, *, fill: int = 0) -> Tensor:
    """Put before each block the one that precedes it: [B, H, M, 2 width, K]."""
    blocks = _blocks(F.pad(x, (0, 0, width, 0), value=fill), width)
    return torch.cat((blocks[:, :, :-1], blocks[:, :, 1:]), dim=3)


def _lanes(x: Tensor, stride: int) -> Tensor:
    """Put every `stride`-th of [B, H, T, K] into a row of its own: [B, H, stride, N, K]."""
    return _blocks(x, stride).transpose(2, 3)


def _reach(width: int, device: torch.device) -> Bool[Tensor, "T S"]:
    """Tell which keys of a pair of blocks the queries of the second one read."""
    query = torch.arange(width, device=device)[:, None]
    key = torch.arange(2 * width, device=device)
    return (query < key) & (key <= query + width)


def _seen(
    k: Float[Tensor, "B G S K"], v: Float[Tensor, "B G S K"], *, width: int, stride: int | None
) -> tuple[Float[Tensor, "B G N K"], Float[Tensor, "B G N K"]]:
    """Take the keys and values that one query behind all others reads."""
    first = max(0, k.shape[2] - width)
    if stride is None or first == 0:
        return k[:, :, first:], v[:, :, first:]
    far = (k.shape[2] - 1) % stride  # the least place whose distance is a multiple
    k, v = (torch.cat((x[:, :, far:first:stride], x[:, :, first:]), dim=2) for x in (k, v))
    return k, v


def _recent(
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    index: Int[Tensor, "#B T"],
    *,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather, row by row, the slots that the queries of a pass can read, and their mask."""
    reach = width - 1 + index.shape[1]
    keys = (index[:, :1] - width + 1).clamp(min=0) + torch.arange(reach, device=index.device)
    slot = keys.clamp(max=k.shape[2] - 1)  # one that is clamped stands behind every query
    row = torch.arange(k.shape[0], device=index.device)[:, None]
    k, v = (x.transpose(1, 2)[row, slot].transpose(1, 2) for x in (k, v))
    return k, v, band(index, keys, width=width)
