"""Root-mean-square norm, and the norm with mean and bias."""

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.ops.norm import rms_norm
from etude.typing import Float, Tensor


class Norm(nn.Module):
    """x / rms(x) in float32, cast back before or after the weight multiplies it."""

    def __init__(self, dim: int, norm: arch.Norm):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps, self.late = norm.eps, norm.cast == "after"

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise the last dimension."""
        if self.late and x.dtype in (torch.bfloat16, torch.float16):
            return rms_norm(x.float(), self.weight.float(), self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the biased variance, in float32."""

    def __init__(self, dim: int, norm: arch.LayerNorm):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.eps = norm.eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise the last dimension."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
