"""Rotary positions: angles in float32, plain or slowed by YaRN, and the rotation of part of a head.

Two layouts: "half" turns dimension i together with i + R / 2 of the first R dimensions, and
"interleaved" turns neighbours. The exponent is divided by R, not by the head width, as in the
published weights.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

from etude import arch
from etude.ops.select import kernels
from etude.typing import Float, Int, Tensor

FEW = 64  # tokens up to which one call of a kernel turns faster than passes of torch


def frequencies(rope: arch.Rope, width: int, device: torch.device) -> Float[Tensor, " P"]:
    """Return the angle per position of each pair of the `width` dimensions that turn, in float32.

    Plain: theta^(-2 i / R). YaRN: between the pairs that complete `beta_fast` and `beta_slow` turns
    within the trained length, a ramp from the plain frequency to the same divided by the factor.

    Source: arXiv:2309.00071, section 3.2.
    """
    exponent = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    plain = 1.0 / rope.theta**exponent
    yarn = rope.scaling
    if yarn is None:
        return plain

    def pair(turns: float) -> float:
        base = math.log(yarn.original_length / (turns * 2 * math.pi))
        return width * base / (2 * math.log(rope.theta))

    low = max(math.floor(pair(yarn.beta_fast)), 0)
    high = min(math.ceil(pair(yarn.beta_slow)), width - 1)
    steps = torch.arange(width // 2, device=device, dtype=torch.float32)
    ramp = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
    return 1.0 / (yarn.factor * rope.theta**exponent) * ramp + plain * (1 - ramp)


def tables(
    pos: Int[Tensor, "..."],
    rope: arch.Rope,
    head_dim: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "... 1 K"], Float[Tensor, "... 1 K"]]:
    """Return cosine and signed sine of every angle, as wide as a head and the same for all heads.

    Args:
        pos: position of each token in its document.
        rope: base, share of the head that turns, scaling and layout of the pairs.
        head_dim: width K of a head; where nothing turns the cosine is 1 and the sine 0.
        dtype: of the result; the angles themselves are float32 (at bf16 position 257 equals 256).

    Returns:
        Tables such that a rotated head is x * cos + swapped(x) * sin: the sine is negative for the
        first of each pair. With YaRN both carry the ratio of its two amplitudes.
    """
    width = rope.width(head_dim)
    angles = pos.unsqueeze(-1).float() * frequencies(rope, width, pos.device)
    cos, sin, still = angles.cos(), angles.sin(), (0, head_dim - width)
    if yarn := rope.scaling:
        grown = yarn.amplitude(yarn.mscale)
        if yarn.mscale_all_dim:
            grown /= yarn.amplitude(yarn.mscale_all_dim)
        cos, sin = cos * grown, sin * grown
    if rope.pairs == "half":
        whole, signed = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    else:
        whole = cos.repeat_interleave(2, -1)
        signed = torch.stack((-sin, sin), -1).flatten(-2)
    whole, signed = F.pad(whole, still, value=1.0), F.pad(signed, still)
    return whole.to(dtype).unsqueeze(-2), signed.to(dtype).unsqueeze(-2)


def rotate(
    x: Float[Tensor, "B T H K"],
    cos: Float[Tensor, "#B T 1 K"],
    sin: Float[Tensor, "#B T 1 K"],
    width: int,
    *,
    pairs: str = "half",
) -> Float[Tensor, "B T H K"]:
    """Turn the first `width` dimensions of each head by the angles of `tables`."""
    fast = kernels(x) if x.shape[:2].numel() <= FEW else None
    if fast is not None:
        return fast.rotate(x, cos, sin, width, pairs == "half")
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _turned(x, cos, sin, width, pairs, 1)
    return _Rotate.apply(x, cos, sin, width, pairs)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, width: int, pairs: str, sign: int) -> Tensor:
    """Turn by the angles (sign 1) or back (-1), without a copy of what stands still."""
    turning = x.narrow(-1, 0, width)
    if pairs == "half":
        swapped = turning.roll(width // 2, -1)
    else:
        swapped = turning.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    out = x * cos
    out.narrow(-1, 0, width).addcmul_(swapped, sin.narrow(-1, 0, width), value=sign)
    return out


class _Rotate(torch.autograd.Function):
    """The gradient is turned back: the tables are all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, width: int, pairs: str) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.how = width, pairs
        return _turned(x, cos, sin, width, pairs, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        width, pairs = ctx.how
        return _turned(grads[0], cos, sin, width, pairs, -1), None, None, None, None


def rotate_reference(
    x: Float[Tensor, "B T H K"],
    pos: Int[Tensor, "B T"],
    width: int,
    theta: float,
    *,
    pairs: str = "half",
) -> Float[Tensor, "B T H K"]:
    """As the formula reads: (a, b) -> (a cos - b sin, b cos + a sin), pair by pair."""
    out = x.clone()
    for i in range(width // 2):
        angle = (pos.float() * theta ** (-2 * i / width)).unsqueeze(-1)
        first, second = (i, i + width // 2) if pairs == "half" else (2 * i, 2 * i + 1)
        a, b = x[..., first], x[..., second]
        out[..., first] = a * angle.cos() - b * angle.sin()
        out[..., second] = b * angle.cos() + a * angle.sin()
    return out
