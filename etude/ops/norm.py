"""Root-mean-square normalisation: the formula, and a twin with a gradient of its own."""

import functools
from typing import Any

import torch

from etude.ops.select import kernels
from etude.typing import Float, Tensor


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
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grads[0] * y).reshape(-1, *weight.shape).sum(0)
        inner = (grads[0] * weight).to(inverse.dtype)
        shared = (inner * y).mean(-1, keepdim=True)
        return inner.addcmul_(y, shared, value=-1).mul_(inverse).to(y.dtype), d_weight, None
