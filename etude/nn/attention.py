"""Grouped-query attention with optional query/key norms, partial rotation and a span."""

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.nn.cache import Paged
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.nn.norm import Norm
from etude.ops.attention import attend
from etude.ops.banded import attend_banded, band
from etude.ops.norm import rms_norm
from etude.ops.rope import rotate
from etude.typing import Float, Tensor


class Attention(nn.Module):
    """o(softmax(q k^T / sqrt(K)) v), with queries and keys normalised, then turned.

    One product gives queries, keys and values; the first two are normalised and turned together.

    Source: arXiv:2508.06471, section 2.1.
    """

    def __init__(self, dim: int, op: arch.Attention, norm: arch.AnyNorm):
        super().__init__()
        self.arch = op
        self.q = Linear(dim, op.heads * op.head_dim, bias=op.qkv_bias)
        self.k = Linear(dim, op.kv_heads * op.head_dim, bias=op.qkv_bias)
        self.v = Linear(dim, op.kv_heads * op.head_dim, bias=op.qkv_bias)
        self.o = Linear(op.heads * op.head_dim, dim, bias=op.out_bias)
        inner = arch.Norm(eps=norm.eps)
        self.q_norm = Norm(op.head_dim, inner) if op.qk_norm else None
        self.k_norm = Norm(op.head_dim, inner) if op.qk_norm else None
        self.eps = norm.eps
        self.parts = (op.heads + op.kv_heads, op.kv_heads)
        self.turns = op.rope.width(op.head_dim) if op.rope else 0

    @property
    def rotary(self) -> tuple[arch.Rope, int] | None:
        """Rope and width of a head, for the tables that a pass makes once."""
        return (self.arch.rope, self.arch.head_dim) if self.arch.rope else None

    @property
    def shares(self) -> bool:
        """Whether rows may share what it makes of a beginning (`nn.shared`)."""
        return self.arch.span is None

    def slots(self) -> tuple[Paged, ...]:
        """What this mixer keeps per token: keys, already turned, and values."""
        shape, span = (self.arch.kv_heads, self.arch.head_dim), self.arch.span
        reach = span.width if span and span.stride is None else None
        return Paged("k", shape, reach), Paged("v", shape, reach)

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
            qk = rotate(qk, *ctx.tables[op.rope, op.head_dim], self.turns, pairs=op.rope.pairs)
        q, k = qk.split((op.heads, op.kv_heads), dim=2)
        y = ctx.each(self._mix, q, k, v)
        return F.linear(y.flatten(2), out, self.o.bias)

    def _mix(
        self,
        ctx: Context,
        q: Float[Tensor, "B T H K"],
        k: Float[Tensor, "B S G K"],
        v: Float[Tensor, "B S G K"],
    ) -> Float[Tensor, "B T H K"]:
        if ctx.cache is not None:
            k, v = ctx.cache.extend(ctx.layer, k=k, v=v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        span, scale = self.arch.span, self.arch.scale
        if ctx.peaks is not None:
            self._watch(ctx, q, k)
        if span is None:
            y = attend(q, k, v, mask=ctx.mask, causal=ctx.causal, scale=scale)
        else:
            y = attend_banded(
                q,
                k,
                v,
                width=span.width,
                stride=span.stride,
                index=ctx.index,
                mask=ctx.mask,
                segments=ctx.segments,
                scale=scale,
            )
        return y.transpose(1, 2)

    def _watch(
        self, ctx: Context, q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G S K"]
    ) -> None:
        """Record the largest scores; of a band, those within it."""
        span, near = self.arch.span, None
        if span is not None:
            keys = torch.arange(k.shape[2], device=k.device)[None]
            near = band(ctx.index, keys, width=span.width, stride=span.stride)
            near = near if ctx.mask is None else near & ctx.mask
        ctx.watch(q, k, scale=self.arch.scale, mask=near)
