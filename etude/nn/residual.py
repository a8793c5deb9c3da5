"""One sublayer and the way it joins the stream, and the layer that is made of a few."""

import torch
from torch import nn

from etude import arch
from etude.nn import build
from etude.nn.context import Context
from etude.typing import Float, Tensor


class Residual(nn.Module):
    """One sublayer and the way it joins the stream: the atom of every model here.

    skip="input":   alpha * x + beta * op(norm(x))           pre-norm
    skip="normed":  alpha * norm(x) + beta * op(norm(x))     the skip carries the normalised value
    """

    def __init__(self, dim: int, part: arch.Residual, norm: arch.AnyNorm):
        super().__init__()
        self.norm = build.norm(dim, part.norm or norm)
        self.op = build.op(dim, part.op, norm)
        self.skip, self.alpha, self.beta = part.skip, part.alpha, part.beta
        self.plain = part.skip == "input" and part.alpha == part.beta == 1.0

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Apply the sublayer."""
        y = self.norm(x)
        if self.plain:  # the products with 1 would be passes over memory
            return x + self.op(y, ctx)
        kept, branch = x if self.skip == "input" else y, self.op(y, ctx)
        branch = branch if self.beta == 1.0 else self.beta * branch
        return torch.add(branch, kept, alpha=self.alpha)


class Layer(nn.Module):
    """Sublayers in the order of the description, under the names of their roles: `mixer`, `ffn`."""

    def __init__(self, dim: int, layer: arch.Layer, norm: arch.AnyNorm):
        super().__init__()
        for part in layer:
            self.add_module(part.role, Residual(dim, part, norm))

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Pass the stream through every sublayer."""
        for part in self.children():
            x = part(x, ctx)
        return x
