"""Feed-forward on each token alone."""

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.typing import Float, Tensor

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu}


class MLP(nn.Module):
    """down(act(gate x) * up x), or down(act(up x)) without a gate."""

    def __init__(self, dim: int, op: arch.MLP):
        super().__init__()
        self.gate = Linear(dim, op.hidden, bias=False) if op.gated else None
        self.up = Linear(dim, op.hidden, bias=False)
        self.down = Linear(op.hidden, dim, bias=False)
        self.act = ACTIVATIONS[op.activation]

    def pack(self) -> tuple[Tensor, Tensor]:
        """Gate over up as one matrix, and the matrix down."""
        wide = (
            self.up.weight if self.gate is None else torch.cat((self.gate.weight, self.up.weight))
        )
        return wide, self.down.weight

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Apply the feed-forward."""
        wide, down = ctx.packed(self)
        hidden = F.linear(x, wide)
        if self.gate is None:
            return F.linear(self.act(hidden), down)
        gate, up = hidden.chunk(2, dim=-1)
        return F.linear(self.act(gate) * up, down)
