"""Lightning attention: linear attention with a fixed decay per head."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.nn.cache import State
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.nn.norm import Norm
from etude.ops.linear_attention import BLOCK, in_blocks, step
from etude.ops.wide import at_least_float32
from etude.typing import Float, Tensor


class Lightning(nn.Module):
    """o(sigmoid(gate x) * norm(lightning(silu(qkv x)))).

    The rows of `qkv` stand by head, each with its q, its k and its v; silu is on all three. The
    norm spans the outputs of all heads. Decays and state are float32 in a narrower model.

    Source: arXiv:2501.08313, section 2.2.
    """

    def __init__(self, dim: int, op: arch.Lightning):
        super().__init__()
        self.arch = op
        width = op.heads * op.head_dim
        self.qkv = Linear(dim, 3 * width, bias=False)
        self.gate = Linear(dim, width, bias=False)
        self.norm = Norm(width, arch.Norm(eps=op.norm_eps))
        self.o = Linear(width, dim, bias=False)
        self.block = min(op.block, BLOCK)  # longer ones cost more and change nothing

    def slots(self) -> tuple[State, ...]:
        """What this mixer keeps: per head the sum of decayed outer products."""
        width = self.arch.head_dim
        return (State("kv", (self.arch.heads, width, width), self._wide),)

    @property
    def _wide(self) -> torch.dtype:
        return at_least_float32(self.qkv.weight)

    def pack(self) -> tuple[Tensor, ...]:
        """Joint projection, output matrix, and the decay of each head: rate, and per token."""
        weight = self.qkv.weight
        rates = torch.tensor(self.arch.slopes, dtype=self._wide, device=weight.device)
        decay = torch.exp(-rates).view(-1, 1, 1)
        return torch.cat((weight, self.gate.weight)), self.o.weight, rates, decay

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Mix each token with those before it."""
        op, width = self.arch, self.o.in_features
        weight, out, rates, decay = ctx.packed(self)
        mixed, gate = F.linear(x, weight).split((3 * width, width), -1)
        heads = F.silu(mixed).unflatten(-1, (op.heads, 3 * op.head_dim))
        q, k, v = heads.split(op.head_dim, -1)
        y = ctx.each(partial(self._mix, rates, decay), q, k, v)
        return F.linear(self.norm(y.flatten(2)) * gate.sigmoid(), out)

    def _mix(
        self,
        rates: Float[Tensor, " H"],
        decay: Float[Tensor, "H 1 1"],
        ctx: Context,
        q: Float[Tensor, "B T H K"],
        k: Float[Tensor, "B T H K"],
        v: Float[Tensor, "B T H K"],
    ) -> Float[Tensor, "B T H K"]:
        if ctx.cache is None:  # padding is a document of its own
            return in_blocks(q, k, v, rates, segments=ctx.segments, block=self.block)[0]
        state = ctx.cache.state(ctx.layer, "kv")
        if q.shape[1] == 1:
            y = step(q, k, v, decay, state, valid=ctx.valid)
        else:
            y, state = in_blocks(q, k, v, rates, state=state, valid=ctx.valid, block=self.block)
        ctx.cache.put(ctx.layer, kv=state)
        return y
