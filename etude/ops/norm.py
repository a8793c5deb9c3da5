"""Root-mean-square normalisation: the formula, and a twin with a gradient of its own."""

import functools
import math
from typing import Any

import torch

from etude.ops.select import kernels
from etude.typing import Float, Tensor

# numbers whose gradient a CPU makes at once: what lies between stays in its cache. 4,096 rows of
# 384: 3.3 to 2.2 ms; of 8 heads of 64: 13 to 4 ms (one core)
BLOCK = 65_536


def rms_norm_reference(
    x: Float[Tensor, "..."], weight: Float[Tensor, "..."], eps: float
) -> Float[Tensor, "..."]:
    """Return weight * cast(x / sqrt(mean(x^2) + eps)) over the last dimension.

    Mean and quotient are float32; the cast to the dtype of `x` comes before the product with the
    weight.
    """
    wide = x.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def rms_norm(
    x: Float[Tensor, "..."], weight: Float[Tensor, "..."], eps: float
) -> Float[Tensor, "..."]:
    """The same in fewer passes over memory; `weight` may hold one row per head."""
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)
    fast = kernels(x)
    if fast is not None and weight.numel() >= x.shape[-1]:
        return fast.rms_norm(x, weight, eps)
    return _normed(x, eps)[0] * weight


@functools.cache
def _floor(eps: float, device: torch.device) -> Tensor:
    """Keep a constant as a tensor: converting a Python number costs as much as the whole sum."""
    with torch.inference_mode(False):
        return torch.tensor(eps, device=device)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x / rms in the dtype of x, and 1 / rms in float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    inverse = torch.addcmul(_floor(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt_()
    y = x * inverse  # float32 for a narrow x too
    return y if y.dtype == x.dtype else y.to(x.dtype), inverse


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _normed(x, eps)
        ctx.save_for_backward(y, inverse, weight)
        return y * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, inverse, weight = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(grads[0]), None
        if ctx.needs_input_grad[1]:
            d_weight = torch.zeros_like(weight, dtype=inverse.dtype)
        row = (*weight.shape[:-1], y.shape[-1])
        size = max(1, BLOCK // math.prod(row)) if y.device.type == "cpu" else y.numel()
        flat = [t.reshape(-1, *row[:-1], t.shape[-1]) for t in (grads[0], y, inverse)]
        out = d_x.view(flat[1].shape)
        parts = zip(*(t.split(size) for t in (*flat, out)), strict=True)
        for grad, normed, scale, into in parts:
            if d_weight is not None:
                moved = (grad * normed).reshape(-1, *weight.shape)
                d_weight += moved.sum(0, dtype=inverse.dtype)
            inner = (grad * weight).to(inverse.dtype)
            shared = (inner * normed).mean(-1, keepdim=True)
            torch.mul(inner.addcmul_(normed, shared, value=-1), scale, out=into)
        return d_x, d_weight if d_weight is None else d_weight.to(weight.dtype), None
