"""Rotary positions: angles in float32, and the half-split rotation of part of each head.

Reference: the GLM-4.5 release turns dimension i together with i + R / 2 of the first R dimensions
and divides the exponent by R, not by the head width (arXiv:2508.06471 and the published weights).
"""

import torch
import torch.nn.functional as F

from etude.typing import Float, Int, Tensor


def tables(
    pos: Int[Tensor, "..."],
    width: int,
    *,
    theta: float,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "... 1 K"], Float[Tensor, "... 1 K"]]:
    """Return cosine and signed sine of every angle, as wide as a head and the same for all heads.

    Args:
        pos: position of each token in its document.
        width: number R of dimensions that turn.
        theta: base of the frequencies: theta ** (-2 i / R).
        head_dim: width K of a head; where nothing turns the cosine is 1 and the sine 0.
        dtype: of the result; the angles themselves are float32 (at bf16 position 257 equals 256).

    Returns:
        Tables such that a rotated head is x * cos + swapped(x) * sin: the sine is negative in the
        first half.
    """
    exponent = torch.arange(0, width, 2, device=pos.device, dtype=torch.float32) / width
    angles = pos.unsqueeze(-1).float() * theta**-exponent
    cos, sin, still = angles.cos(), angles.sin(), (0, head_dim - width)
    whole = F.pad(torch.cat((cos, cos), -1), still, value=1.0)
    signed = F.pad(torch.cat((-sin, sin), -1), still)
    return whole.to(dtype).unsqueeze(-2), signed.to(dtype).unsqueeze(-2)


def rotate(
    x: Float[Tensor, "B T H K"],
    cos: Float[Tensor, "#B T 1 K"],
    sin: Float[Tensor, "#B T 1 K"],
    width: int,
) -> Float[Tensor, "B T H K"]:
    """Turn the first `width` dimensions of each head by the angles of `tables`."""
    half = width // 2
    first, second, still = x.split((half, half, x.shape[-1] - width), dim=-1)
    swapped = torch.cat((second, first, still), dim=-1)
    return torch.addcmul(x * cos, swapped, sin)


def rotate_reference(
    x: Float[Tensor, "B T H K"], pos: Int[Tensor, "B T"], width: int, theta: float
) -> Float[Tensor, "B T H K"]:
    """The same as the formula reads, pair by pair: (a, b) -> (a cos - b sin, b cos + a sin)."""
    out = x.clone()
    for i in range(width // 2):
        angle = (pos.float() * theta ** (-2 * i / width)).unsqueeze(-1)
        a, b = x[..., i], x[..., i + width // 2]
        out[..., i] = a * angle.cos() - b * angle.sin()
        out[..., i + width // 2] = b * angle.cos() + a * angle.sin()
    return out
