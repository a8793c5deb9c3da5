"""Root-mean-square norm."""

import torch
from torch import nn

from etude import arch
from etude.ops.norm import rms_norm
from etude.typing import Float, Tensor


class Norm(nn.Module):
    """x / rms(x) in float32, cast back before the weight multiplies it."""

    def __init__(self, dim: int, norm: arch.Norm):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = norm.eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)
