"""Causal attention with grouped keys: one readable reference, one fast twin on fused kernels.

Which keys a query may read is either "all up to its own position" (`causal=True`, no mask is built;
the queries are the last of the positions) or a Boolean mask, made once per forward by
`document_mask` or `cache_mask`.
"""

import math

import torch
import torch.nn.functional as F

from etude.ops.wide import at_least_float32
from etude.typing import Bool, Float, Int, Tensor

PEAK_BLOCK = 128  # queries whose scores `peak_scores` writes out together


def attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    *,
    mask: Bool[Tensor, "#B 1 T S"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """Softmax attention through the fused kernel of the device.

    Args:
        q, k, v: heads; query head j reads key head j // (H / G).
        mask: true where a query may read a key; every query needs at least one.
        causal: the queries stand at the last T of S positions and read up to their own; then there
            is no mask.
        scale: multiplies the scores; None is 1 / sqrt(K).
    """
    heads, groups = q.shape[1], k.shape[1]
    if q.shape[2] == 1 and heads != groups:
        # the heads of a group as queries of one head: keys are read once, 2 to 3 times as fast
        y = F.scaled_dot_product_attention(
            q.unflatten(1, (groups, -1)).squeeze(3), k, v, mask, scale=scale
        )
        return y.flatten(1, 2).unsqueeze(2)
    if causal and k.shape[2] > q.shape[2]:
        if q.device.type == "cpu" and not torch.is_grad_enabled():
            return _continued(q, k, v, scale)
        mask, causal = _last(q, k), False
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=heads != groups
    )


def attend_reference(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    *,
    mask: Bool[Tensor, "#B 1 T S"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """The same, as the formula reads: softmax(q k^T / sqrt(K)) v, the softmax at least float32."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    score = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = _last(q, k)
    if mask is not None:
        score = score.masked_fill(~mask, -math.inf)
    wide = at_least_float32(q)
    return score.softmax(-1, dtype=wide).to(q.dtype) @ v


def _last(q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"]) -> Bool[Tensor, "1 1 T S"]:
    """Let queries at the last T of S positions read up to their own."""
    new, stored = q.shape[2], k.shape[2]
    every = torch.ones(new, stored, dtype=torch.bool, device=q.device)
    return every.tril(stored - new)[None, None]


def _continued(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    scale: float | None,
) -> Float[Tensor, "B H T K"]:
    """The last T of S positions: the keys before them, which all may read, and their own triangle.

    Two passes of the kernel without a mask, joined by their log-sum-exp: 1.6 times as fast as one
    pass with a mask (512 on 16,384 positions, one core).
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    heads, groups, new = q.shape[1], k.shape[1], q.shape[2]
    share, before = heads // groups, k.shape[2] - new
    rows = q.unflatten(1, (groups, share)).flatten(2, 3)  # heads of a group read the same keys
    past, weight = kernel(rows, k[:, :, :before], v[:, :, :before], scale=scale)[:2]
    past = past.unflatten(2, (share, new)).flatten(1, 2)
    weight = weight.unflatten(2, (share, new)).flatten(1, 2)
    own = [part[:, :, before:].repeat_interleave(share, dim=1) for part in (k, v)]
    here, there = kernel(q, *own, is_causal=True, scale=scale)[:2]
    return torch.lerp(here, past, (weight - there).sigmoid().unsqueeze(-1).to(q.dtype))


@torch.no_grad()
def peak_scores(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    *,
    mask: Bool[Tensor, "#B 1 T S"] | None = None,
    causal: bool = False,
    valid: Bool[Tensor, "B T"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, " H"]:
    """Largest score of each head over all pairs that may be read; fused kernels do not tell it.

    Queries pass in blocks, so that B x H x `PEAK_BLOCK` x S scores are held at once.

    Args:
        q, k: heads; query head j reads key head j // (H / G).
        mask, causal, scale: as for `attend`.
        valid: false on queries that do not count (padding); None counts all.

    Returns:
        In float32 at least, without gradient; -inf where no pair counts.

    Source: Kimi K2, arXiv:2507.20534, section 2.1 (the S_max of QK-Clip).
    """
    groups, (new, stored) = k.shape[1], (q.shape[2], k.shape[2])
    wide = at_least_float32(q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    top = torch.full((q.shape[1],), -math.inf, dtype=wide, device=q.device)
    steps = torch.arange(stored, device=q.device)
    for at in range(0, new, PEAK_BLOCK):
        end = min(at + PEAK_BLOCK, new)
        seen = stored - new + end if causal else stored
        own = q[:, :, at:end].unflatten(1, (groups, -1))  # [B, G, H / G, t, K]
        score = (own @ k[:, :, None, :seen].transpose(-1, -2)).flatten(1, 2).to(wide) * scale
        read = steps[:seen] <= steps[stored - new :][at:end, None] if causal else None
        read = read if mask is None else mask[:, :, at:end, :seen]
        if valid is not None:
            counted = valid[:, None, at:end, None]
            read = counted if read is None else read & counted
        if read is not None:
            score = score.masked_fill(~read, -math.inf)
        top = torch.maximum(top, score.amax((0, 2, 3)))
    return top


def document_mask(segments: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 T T"]:
    """Let a token read itself and what stands before it in its own document.

    Padding (segment 0) reads padding: its rows stay finite and nothing else sees them.
    """
    same = segments[:, None, :, None] == segments[:, None, None, :]
    length = segments.shape[1]
    return same & torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()


def cache_mask(pos: Int[Tensor, "B T"], stored: int) -> Bool[Tensor, "B 1 T stored"]:
    """Let a token at position p read the slots 0..p of its row, of `stored` slots in all."""
    return torch.arange(stored, device=pos.device) <= pos[:, None, :, None]


def runs(segments: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Number the documents of each row from 1, as they follow; padding (0) stays 0.

    So a number that comes back after another stands for a document of its own.
    """
    starts = torch.zeros_like(segments)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return (starts.cumsum(1) + 1) * (segments != 0)


def document_positions(segments: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Count positions from the start of each run of equal segments."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values
