"""QK-clip: attention scores that grew too large are brought back by the weights that make them.

A score is a product of a query and a key, so that scaling the rows which make them scales it. After
each step every head whose largest score S of that step was above tau has its rows scaled such that
the same score would have been tau: by g = tau / S in all. Other heads keep every bit. The step
itself, its loss and its gradients, is left alone.

Source: Kimi K2, arXiv:2507.20534, section 2.1 and algorithm 1.
"""

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from etude import arch
from etude.typing import Float, Tensor


def shares(top: Float[Tensor, " H"], *, tau: float) -> Float[Tensor, " H"]:
    """Return g of each head: tau / S where S is above tau, else exactly 1.

    Args:
        top: S of each head, over the whole step; -inf or NaN for one that saw no pair.
        tau: largest score allowed.
    """
    return torch.where(top > tau, tau / top, 1.0)


@torch.no_grad()
def clip_heads(
    op: arch.Attention | arch.MLA, weights: Mapping[str, Tensor], share: Float[Tensor, " H"]
) -> None:
    """Scale the rows of one layer in place so that each head's scores shrink by its share.

    Args:
        op: the layer.
        weights: its parameters by name, as in `arch.tensors`; shards (`DTensor`) work alike.
        share: g of each query head.

    Raises:
        ValueError: queries and keys are normalised, so that no row decides the scores.
    """
    if isinstance(op, arch.MLA):
        _latent(op, weights, share)
    elif op.qk_norm:
        raise ValueError("clip_heads: normalised queries and keys, whose rows scale no score")
    else:
        _plain(op, weights, share)


def _plain(op: arch.Attention, weights: Mapping[str, Tensor], share: Tensor) -> None:
    """The root of g on each side; where heads share their keys, all of g on each query head.

    A key head that several query heads read must not shrink for one of them (our choice; taking the
    group's maximum would clip heads that need none).
    """
    own = op.heads == op.kv_heads
    for part, factor in (("q", share.sqrt() if own else share), ("k", share.sqrt())):
        if part == "q" or own:
            rows = factor.repeat_interleave(op.head_dim)
            _scale(weights[f"{part}.weight"], rows)
            if op.qkv_bias:
                _scale(weights[f"{part}.bias"], rows)


def _latent(op: arch.MLA, weights: Mapping[str, Tensor], share: Tensor) -> None:
    """Root of g on both sides of the part that stands still, g on the queries of the turning part.

    The turning key serves all heads and stays, as do the values, which lie behind each head's keys.
    """
    one = torch.ones_like(share)
    _scale(weights["q_up.weight"], _per_head((share.sqrt(), op.nope), (share, op.rope_dim)))
    _scale(weights["kv_up.weight"], _per_head((share.sqrt(), op.nope), (one, op.value)))


def _per_head(*parts: tuple[Float[Tensor, " H"], int]) -> Float[Tensor, " rows"]:
    """Factors of rows that stand by head, each head with these parts one behind the other."""
    return torch.cat([factor[:, None].expand(-1, rows) for factor, rows in parts], 1).flatten()


def _scale(weight: Tensor, rows: Float[Tensor, " rows"]) -> None:
    """Multiply each row by its factor, on the ranks that hold a part of it."""
    rows = rows.to(weight.device, weight.dtype)
    if isinstance(weight, DTensor):
        by_row = all(p.is_replicate() or p.is_shard(0) for p in weight.placements)
        if by_row:
            mesh, places = weight.device_mesh, weight.placements
            rows = distribute_tensor(rows, mesh, places, src_data_rank=None).to_local()
        weight = weight.to_local()
    weight.mul_(rows.view(-1, *[1] * (weight.ndim - 1)))
