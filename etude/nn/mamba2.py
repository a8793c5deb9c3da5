"""Mamba-2: a selective state space with one decay per head and token.

Letters of the paper: H heads of width P (I = H P in all), N the state, G groups of B and C.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.nn.cache import State
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.nn.norm import Norm
from etude.ops.attention import document_positions
from etude.ops.conv import causal_conv, conv_step, next_tail
from etude.ops.norm import rms_norm
from etude.ops.ssd import ssd, ssd_step
from etude.ops.wide import at_least_float32
from etude.typing import Float, Tensor


class Conv(nn.Module):
    """Weights of a causal convolution over time, one filter per channel."""

    def __init__(self, channels: int, width: int, *, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.register_parameter("bias", nn.Parameter(torch.empty(channels)) if bias else None)

    def start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Return first values of `weight` or `bias`: uniform within 1 / sqrt(width) of zero.

        That is what the published code leaves these at: a filter keeps the scale of its input.
        """
        bound = self.weight.shape[-1] ** -0.5
        draw = torch.empty(self.get_parameter(name).shape, dtype=torch.float32)
        return draw.uniform_(-bound, bound, generator=generator)


class Mamba2(nn.Module):
    """o(norm(y * silu(z))), where y = ssd(x, dt, B, C) + D x and [x, B, C] = silu(conv(.)).

    One product gives z, the input of the convolution and the step sizes. The gate multiplies before
    the norm, which is taken over the heads of each group apart. Step sizes, decays and the state
    are float32 at least.

    Source: arXiv:2405.21060, section 7.
    """

    def __init__(self, dim: int, op: arch.Mamba2, norm: arch.AnyNorm):
        super().__init__()
        self.arch, self.eps = op, norm.eps
        self.in_proj = Linear(dim, op.inner + op.channels + op.heads, bias=op.bias)
        self.conv = Conv(op.channels, op.conv, bias=op.conv_bias)
        self.a_log = nn.Parameter(torch.empty(op.heads))
        self.d = nn.Parameter(torch.empty(op.heads))
        self.dt_bias = nn.Parameter(torch.empty(op.heads))
        self.norm = Norm(op.inner, arch.Norm(eps=norm.eps))
        self.o = Linear(op.inner, dim, bias=op.bias)

    def slots(self) -> tuple[State, ...]:
        """What this mixer keeps: the state of each head, and the last inputs of the convolution."""
        op, double = self.arch, self.in_proj.weight.dtype == torch.float64
        return (
            State(
                "ssm",
                (op.heads, op.head_dim, op.state),
                torch.float64 if double else torch.float32,
            ),
            State("tail", (op.conv - 1, op.channels)),
        )

    def start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Return first values of the parameter `name` of this module, or None for the rule.

        Rates 1 to H, skips 1, and step sizes drawn log-uniformly between `dt_init`'s limits.
        """
        heads = self.arch.heads
        match name:
            case "a_log":
                return torch.arange(1, heads + 1, dtype=torch.float32).log()
            case "d":
                return torch.ones(heads)
            case "dt_bias":
                least, most, floor = self.arch.dt_init
                share = torch.rand(heads, generator=generator, dtype=torch.float32)
                low, high = math.log(least), math.log(most)
                dt = (low + share * (high - low)).exp().clamp(min=floor)
                return dt + (-torch.expm1(-dt)).log()  # softplus turns it into dt
        return None

    def pack(self) -> tuple[Tensor | None, ...]:
        """Both projections, taps [K, 1, C], and rates, skips and step biases in float32."""
        wide = at_least_float32(self.a_log)
        return (
            self.in_proj.weight,
            self.o.weight,
            self.conv.weight.permute(2, 1, 0).contiguous(),
            -self.a_log.to(wide).exp(),
            self.d.to(wide),
            self.dt_bias.to(wide),
        )

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Mix each token with those before it."""
        op = self.arch
        weight, out, *_, step_bias = ctx.packed(self)
        parts = F.linear(x, weight, self.in_proj.bias)
        z, xbc, dt = parts.split((op.inner, op.channels, op.heads), dim=-1)
        dt = F.softplus(dt.to(step_bias.dtype) + step_bias)
        if op.dt_limit != (0.0, None):
            dt = dt.clamp(*op.dt_limit)
        y = ctx.each(self._mix, xbc, dt)
        return F.linear(self._gated(y, z), out, self.o.bias)

    def _mix(
        self, ctx: Context, xbc: Float[Tensor, "B T C"], dt: Float[Tensor, "B T H"]
    ) -> Float[Tensor, "B T I"]:
        op, cache, layer = self.arch, ctx.cache, ctx.layer
        if ctx.valid is not None:
            pad = ~ctx.valid.unsqueeze(-1)
            xbc, dt = xbc.masked_fill(pad, 0.0), dt.masked_fill(pad, 0.0)
        _, _, taps, rates, skips, _ = ctx.packed(self)
        taps = taps.squeeze(1)
        if cache is None:
            pos = None if ctx.segments is None else document_positions(ctx.segments)
            x, b, c = self._heads(causal_conv(xbc, taps, self.conv.bias, pos=pos))
            starts = None if pos is None else pos == 0
            y, _ = ssd(x, dt, rates, b, c, starts=starts, chunk=op.chunk)
        else:
            state, tail = cache.state(layer, "ssm"), cache.state(layer, "tail")
            if xbc.shape[1] == 1:
                x, b, c = self._heads(conv_step(xbc, taps, self.conv.bias, tail=tail))
                y, state = ssd_step(x[:, 0], dt[:, 0], rates, b[:, 0], c[:, 0], state)
                y = y.unsqueeze(1)
            else:
                x, b, c = self._heads(causal_conv(xbc, taps, self.conv.bias, tail=tail))
                y, state = ssd(x, dt, rates, b, c, state=state, chunk=op.chunk)
            cache.put(layer, ssm=state, tail=next_tail(xbc, tail, ctx.valid))
        return (y + x * skips.unsqueeze(-1)).flatten(2)

    def _heads(
        self, filtered: Float[Tensor, "B T C"]
    ) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B T G N"], Float[Tensor, "B T G N"]]:
        """Values of the heads, and what writes and what reads of each group."""
        op = self.arch
        width = op.groups * op.state
        x, b, c = F.silu(filtered).split((op.inner, width, width), dim=-1)
        groups = (op.groups, op.state)
        return (
            x.unflatten(-1, (op.heads, op.head_dim)),
            b.unflatten(-1, groups),
            c.unflatten(-1, groups),
        )

    def _gated(
        self, y: Float[Tensor, "B T I"], z: Float[Tensor, "B T I"]
    ) -> Float[Tensor, "B T I"]:
        """Gate, then norm over each group; a narrow dtype comes back before the weight."""
        groups, weight = self.arch.groups, self.norm.weight
        v = (y * F.silu(z.to(y.dtype))).unflatten(-1, (groups, -1))
        if z.dtype == v.dtype:
            return rms_norm(v, weight.view(groups, -1), self.eps).flatten(2)
        return weight * rms_norm(v, v.new_ones(()), self.eps).flatten(2).to(z.dtype)
