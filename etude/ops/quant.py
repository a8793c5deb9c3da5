"""Weights in 8 and 4 bits: FP8 E4M3 with a scale per block, INT4 with a scale per group of a row.

INT8 with a scale per row is for inference: nothing is stored in it.

Plain torch, and the reference for any kernel. Packing takes the scale from the largest magnitude of
a block or group and rounds to nearest. Packing what unpacking gave in float32 gives the same bits
back: among the scales that the largest magnitude allows, the one that loses nothing is taken.
"""

import torch
import torch.nn.functional as F

from etude.typing import Float, Int, Tensor

E4M3 = torch.float8_e4m3fn
TOP = torch.finfo(E4M3).max  # 448
NIBBLES = 8  # 4-bit values in one int32


def pack_fp8(
    weight: Float[Tensor, "R C"], *, block: tuple[int, int] = (128, 128)
) -> tuple[Tensor, Float[Tensor, "r c"]]:
    """Round a matrix to E4M3, with one float32 scale for each block.

    Args:
        weight: any float dtype; finite.
        block: rows and columns of a block; those at the lower and right edge may be smaller.

    Returns:
        The values [R, C] in float8_e4m3fn, and what multiplies those of a block to give the weight
        back: the largest magnitude of the block over 448, rounded up to 20 bits, so that every
        product is exact in float32. A block whose values are an exact multiple of E4M3 by one of
        the full float32 scales beside it, as unpacked releases are, keeps that scale.

    Source: arXiv:2412.19437, section 3.3.2 (tile- and block-wise quantisation).
    """
    wide = weight.detach().float()
    top = _blocks(wide.abs(), block).amax((1, 3)) / TOP
    ones = torch.ones_like(top)
    kept = torch.where(top > 0, _rounded_up(top), ones)
    lost = _lost(wide, kept, block)
    for scale in (top, *(torch.nextafter(top, ones * end) for end in (0.0, torch.inf))):
        if not lost.any():
            break
        scale = torch.where(scale > 0, scale, ones)
        better = lost & ~_lost(wide, scale, block)
        kept, lost = torch.where(better, scale, kept), lost & ~better
    return _fp8(wide, kept, block), kept


def unpack_fp8(
    values: Tensor,
    scale: Float[Tensor, "r c"],
    *,
    block: tuple[int, int] = (128, 128),
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "R C"]:
    """Multiply E4M3 values [R, C] with the scales of their blocks."""
    return (values.float() * _spread(scale, block, values.shape)).to(dtype)


def _fp8(wide: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    # a scale a little below the exact quotient would carry the top beyond 448, which has no value
    return (wide / _spread(scale, block, wide.shape)).clamp(-TOP, TOP).to(E4M3)


def _lost(wide: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """Whether a block does not come back as it was."""
    back = unpack_fp8(_fp8(wide, scale, block), scale, block=block)
    return _blocks((back != wide).float(), block).amax((1, 3)) > 0


def _blocks(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Cut [R, C] into [r, block rows, c, block columns], with zeros beyond the edges."""
    more = [-size % step for size, step in zip(x.shape, block, strict=True)]
    x = F.pad(x, (0, more[1], 0, more[0]))
    return x.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))


def _spread(scale: Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    rows = scale.repeat_interleave(block[0], 0)[: shape[0]]
    return rows.repeat_interleave(block[1], 1)[:, : shape[1]]


def _rounded_up(x: Tensor) -> Tensor:
    """Keep 20 of the 24 bits of positive float32 numbers, rounding the rest up."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 15) & ~15).view(torch.float32)


def pack_int8(weight: Float[Tensor, "*E R C"]) -> tuple[Int[Tensor, "*E R C"], Tensor]:
    """Round matrices to integers from -127 to 127, with one scale for each row.

    Args:
        weight: any float dtype; finite.

    Returns:
        The integers, and float32 scales [*E, R]: the largest magnitude of a row over 127, 1 where a
        row is zero. No value moves by more than half a scale.

    Source: arXiv:1712.05877, section 2.1, without a zero point.
    """
    wide = weight.detach().float()
    top = wide.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(top > 0, top, torch.ones_like(top))
    return (wide / scale).round_().clamp_(-127, 127).to(torch.int8), scale.squeeze(-1)


def unpack_int8(
    values: Int[Tensor, "*E R C"], scale: Tensor, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*E R C"]:
    """Multiply rows of integers with their scales."""
    return values.to(dtype).mul_(scale.to(dtype).unsqueeze(-1))


def linear_int8(
    x: Float[Tensor, "... C"],
    values: Int[Tensor, "R C"],
    scale: Float[Tensor, " R"],
    bias: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, "... R"]:
    """Multiply with a matrix of `pack_int8`, in the dtype of `x`."""
    return F.linear(x, unpack_int8(values, scale, dtype=x.dtype), bias)


def pack_int4(
    weight: Float[Tensor, "R C"], *, group: int = 32, dtype: torch.dtype = torch.bfloat16
) -> tuple[Int[Tensor, "R W"], Float[Tensor, "R c"]]:
    """Round a matrix to integers from -8 to 7, with one scale for each group along a row.

    Args:
        weight: any float dtype; finite; C is a multiple of `group`.
        group: neighbouring columns that share a scale.
        dtype: of the scales.

    Returns:
        int32 words [R, ceil(C / 8)] of eight values each, the first in the lowest bits, stored as
        value + 8; and the scales: the largest magnitude of a group over 7, or over 8 where only
        that gives the group back as it is.

    Raises:
        ValueError: the columns are no multiple of the group.

    Source: the pack-quantized format of compressed-tensors, symmetric.
    """
    if weight.shape[1] % group:
        raise ValueError(f"{weight.shape[1]} columns are no multiple of a group of {group}")
    groups = weight.detach().float().unflatten(1, (-1, group))
    top = groups.abs().amax(-1)
    seven, eight = (_scales(top / most, dtype) for most in (7, 8))
    lost, better = (~_alike(groups, scale) for scale in (seven, eight))
    scale = torch.where(lost & ~better, eight, seven)
    values = _int4(groups, scale).flatten(1).to(torch.int32) + 8
    values = F.pad(values, (0, -values.shape[1] % NIBBLES)).unflatten(1, (-1, NIBBLES))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=weight.device)
    return (values << shifts).sum(-1, dtype=torch.int32), scale


def unpack_int4(
    words: Int[Tensor, "R W"],
    scale: Float[Tensor, "R c"],
    *,
    group: int = 32,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "R C"]:
    """Multiply the 4-bit values of int32 words with the scales of their groups."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    values = ((words.unsqueeze(-1) >> shifts) & 15).flatten(1) - 8
    groups = values[:, : scale.shape[1] * group].float().unflatten(1, (-1, group))
    return (groups * scale.float().unsqueeze(-1)).flatten(1).to(dtype)


def _scales(x: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = x.to(dtype)
    return torch.where(narrow > 0, narrow, torch.ones_like(narrow))


def _int4(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale.float().unsqueeze(-1)).round().clamp(-8, 7)


def _alike(groups: Tensor, scale: Tensor) -> Tensor:
    back = _int4(groups, scale) * scale.float().unsqueeze(-1)
    return (back == groups).all(-1)
