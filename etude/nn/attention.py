"""Grouped-query attention with optional query/key norms and partial rotation."""

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.nn.cache import Paged
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.nn.norm import Norm
from etude.ops.attention import attend
from etude.ops.norm import rms_norm
from etude.ops.rope import rotate
from etude.typing import Float, Tensor


class Attention(nn.Module):
    """o(softmax(q k^T / sqrt(K)) v), with queries and keys normalised, then turned.

    One product gives queries, keys and values; the first two are normalised and turned together.

    Source: arXiv:2508.06471, section 2.1.
    """

    def __init__(self, dim: int, op: arch.Attention, norm: arch.Norm):
        super().__init__()
        self.arch = op
        self.q = Linear(dim, op.heads * op.head_dim, bias=op.qkv_bias)
        self.k = Linear(dim, op.kv_heads * op.head_dim, bias=op.qkv_bias)
        self.v = Linear(dim, op.kv_heads * op.head_dim, bias=op.qkv_bias)
        self.o = Linear(op.heads * op.head_dim, dim, bias=False)
        self.q_norm = Norm(op.head_dim, norm) if op.qk_norm else None
        self.k_norm = Norm(op.head_dim, norm) if op.qk_norm else None
        self.eps = norm.eps
        self.parts = (op.heads + op.kv_heads, op.kv_heads)
        self.turns = op.rope.width(op.head_dim) if op.rope else 0

    def slots(self) -> tuple[Paged, ...]:
        """What this mixer keeps per token: keys, already turned, and values."""
        shape = (self.arch.kv_heads, self.arch.head_dim)
        return Paged("k", shape), Paged("v", shape)

    def pack(self) -> tuple[Tensor | None, ...]:
        """Joint projection, its bias, norm weights [1, H + G, K] of its heads, output matrix."""
        op, parts = self.arch, (self.q, self.k, self.v)
        bias = torch.cat([part.bias for part in parts]) if op.qkv_bias else None
        norms = None
        if self.q_norm and self.k_norm:
            q, k = (
                self.q_norm.weight.expand(op.heads, -1),
                self.k_norm.weight.expand(op.kv_heads, -1),
            )
            norms = torch.cat((q, k)).unsqueeze(0)
        return torch.cat([part.weight for part in parts]), bias, norms, self.o.weight

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Mix each token with what it may read."""
        op = self.arch
        weight, bias, norms, out = ctx.packed(self)
        heads = F.linear(x, weight, bias).unflatten(-1, (-1, op.head_dim))  # [B, T, H + 2G, K]
        qk, v = heads.split(self.parts, dim=2)
        if norms is not None:
            qk = rms_norm(qk, norms, self.eps)
        if op.rope:
            qk = rotate(qk, *ctx.tables[op.rope], self.turns)
        q, k = qk.split((op.heads, op.kv_heads), dim=2)
        if ctx.cache is not None:
            k, v = ctx.cache.extend(ctx.layer, k=k, v=v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = attend(q, k, v, mask=ctx.mask, causal=ctx.causal)
        return F.linear(y.transpose(1, 2).flatten(2), out)
