"""Feed-forward on each token alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.ops.int8 import stored
from etude.ops.select import kernels
from etude.typing import Float, Tensor


def relu2(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """relu(x)^2 (arXiv:2109.08668)."""
    return F.relu(x).square()


def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The approximation of gelu by a tanh, as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": gelu_tanh, "relu2": relu2}

FUSED = {"silu": True, "relu2": False}  # those that a kernel applies itself: whether it is silu
FEW = 32  # tokens up to which one call of a kernel is faster than products of torch


class MLP(nn.Module):
    """down(act(gate x) * up x), or down(act(up x)) without a gate."""

    def __init__(self, dim: int, op: arch.MLP):
        super().__init__()
        self.gate = Linear(dim, op.hidden, bias=op.bias) if op.gated else None
        self.up = Linear(dim, op.hidden, bias=op.bias)
        self.down = Linear(op.hidden, dim, bias=op.bias)
        self.act = ACTIVATIONS[op.activation]
        self.silu = None if op.bias else FUSED.get(op.activation)

    def pack(self) -> tuple[Any, ...]:
        """Gate over up as one matrix, its bias, the matrix down, and all three for a kernel."""
        parts = [self.up] if self.gate is None else [self.gate, self.up]
        biases: list[Tensor] = [p.bias for p in parts if p.bias is not None]
        weights = [p.weight for p in parts]
        wide = weights[0] if len(parts) == 1 else torch.cat(weights)
        down = self.down.weight
        return wide, torch.cat(biases) if biases else None, down, stored([*weights, down])

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Apply the feed-forward."""
        wide, bias, down, (matrices, scales) = ctx.packed(self)
        if self.silu is not None and x.numel() <= FEW * x.shape[-1]:
            fast = kernels(x)
            if fast is not None:
                return fast.experts(x, None, None, matrices, scales, self.silu)
        hidden = F.linear(x, wide, bias)
        if self.gate is None:
            return F.linear(self.act(hidden), down, self.down.bias)
        gate, up = hidden.chunk(2, dim=-1)
        return F.linear(self.act(gate) * up, down, self.down.bias)
