"""Multi-head latent attention, in its expanded and its absorbed form.

What is remembered of a token is its latent c and one turned key part k_r, for all heads together.
Expanded, every head makes its key [W_uk c | k_r] and value W_uv c, and attends as usual. Absorbed,
W_uk moves to the query and W_uv behind the sum, q (W_uk c) = (W_uk^T q) c, so that all heads read
the latents themselves: more work per pair of tokens, none to remake keys and values.
"""

from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.nn.cache import Paged
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.nn.norm import Norm
from etude.ops.attention import attend
from etude.ops.rope import rotate
from etude.typing import Float, Tensor


class Packed(NamedTuple):
    """Weights as a pass reads them.

    Attributes:
        down: rows of the query latent (or of the queries themselves), the key-value latent and the
            turning key.
        bias: of `down`, or None.
        q_up: from the query latent to the heads, or None.
        kv_up: [H * (N + V), R], keys first in each head.
        key: the part of `kv_up` that makes keys, [H, N, R].
        value: the part that makes values, transposed, [H, R, V].
        out: output matrix.
    """

    down: Tensor
    bias: Tensor | None
    q_up: Tensor | None
    kv_up: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


class MLA(nn.Module):
    """Keys and values of all heads from one latent per token.

    N: width of a head's part that does not turn, P: of the turning part, V: of a value, R: of the
    latent. The weights of neighbouring pairs are laid out anew for each pass so that dimension i
    turns with i + P / 2: the cheaper rotation, and the same scores, as queries and keys share the
    order.

    Source: arXiv:2405.04434, section 2.1; absorption: its section 2.1.2 and appendix C.
    """

    def __init__(self, dim: int, op: arch.MLA):
        super().__init__()
        self.arch = op
        inner = arch.Norm(eps=op.norm_eps)
        self.q_down = Linear(dim, op.q_rank, bias=op.bias) if op.q_rank else None
        self.q_norm = Norm(op.q_rank, inner) if op.q_rank else None
        self.q_up = Linear(op.q_rank or dim, op.heads * op.key, bias=False)
        self.kv_down = Linear(dim, op.kv_rank + op.rope_dim, bias=op.bias)
        self.kv_norm = Norm(op.kv_rank, inner)
        self.kv_up = Linear(op.kv_rank, op.heads * (op.nope + op.value), bias=False)
        self.o = Linear(op.heads * op.value, dim, bias=op.bias)

    @property
    def rotary(self) -> tuple[arch.Rope, int]:
        """Rope, as the packed weights turn, and width of the part of a head that turns."""
        return _by_halves(self.arch.rope), self.arch.rope_dim

    def slots(self) -> tuple[Paged, ...]:
        """What this mixer keeps per token: the normed latent, and the key part that has turned."""
        return Paged("latent", (self.arch.kv_rank,)), Paged("turned", (self.arch.rope_dim,))

    def pack(self) -> Packed:
        """Join what reads the same input, order the turning rows, and split the heads' weights."""
        op = self.arch
        q_up = self._ordered(self.q_up.weight, op.heads)
        first = q_up if self.q_down is None else self.q_down.weight
        down = torch.cat((first, self._ordered(self.kv_down.weight, 1)))
        bias = None
        if self.kv_down.bias is not None:
            none = down.new_zeros(len(first))
            q_bias = none if self.q_down is None else self.q_down.bias
            bias = torch.cat((q_bias, self._ordered(self.kv_down.bias, 1)))
        heads = self.kv_up.weight.unflatten(0, (op.heads, -1))
        key, value = heads.split((op.nope, op.value), dim=1)
        return Packed(
            down,
            bias,
            None if self.q_down is None else q_up,
            self.kv_up.weight,
            key,
            value.transpose(1, 2),
            self.o.weight,
        )

    def _ordered(self, rows: Tensor, heads: int) -> Tensor:
        """Put the second of each turning pair behind all the first, at the end of each head."""
        if self.arch.rope.pairs == "half":
            return rows
        places = torch.arange(len(rows), device=rows.device).unflatten(0, (heads, -1))
        still, turning = places.tensor_split((-self.arch.rope_dim,), dim=1)
        halves = turning.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
        return rows[torch.cat((still, halves), dim=1).flatten()]

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Mix each token with what it may read."""
        op = self.arch
        packed = Packed(*ctx.packed(self))
        joint = F.linear(x, packed.down, packed.bias)
        first = joint.shape[-1] - op.kv_rank - op.rope_dim
        q, latent, k_turned = joint.split((first, op.kv_rank, op.rope_dim), dim=-1)
        if packed.q_up is not None and self.q_norm is not None:
            q = F.linear(self.q_norm(q), packed.q_up)
        q_still, q_turned = q.unflatten(-1, (op.heads, op.key)).split((op.nope, op.rope_dim), -1)
        cos, sin = ctx.tables[self.rotary]
        q_turned = rotate(q_turned, cos, sin, op.rope_dim)
        k_turned = rotate(k_turned.unsqueeze(2), cos, sin, op.rope_dim).squeeze(2)
        mix = partial(self._mix, packed)
        y = ctx.each(mix, q_still, q_turned, self.kv_norm(latent), k_turned)
        return F.linear(y.flatten(2), packed.out, self.o.bias)

    def _mix(
        self,
        packed: Packed,
        ctx: Context,
        q_still: Float[Tensor, "B T H N"],
        q_turned: Float[Tensor, "B T H P"],
        latent: Float[Tensor, "B T R"],
        k_turned: Float[Tensor, "B T P"],
    ) -> Float[Tensor, "B T H V"]:
        """Attend in the form that multiplies less; the first tokens of a row always expand."""
        op = self.arch
        if ctx.cache is not None:
            latent, k_turned = ctx.cache.extend(ctx.layer, latent=latent, turned=k_turned)
        if ctx.peaks is not None:
            self._watch(packed, ctx, q_still, q_turned, latent, k_turned)
        # Per head and stored token: the absorbed form pays 2 R + P a query for N + P + V, and saves
        # R (N + V), the key and the value made anew.
        dearer = 2 * op.kv_rank + op.rope_dim - op.key - op.value
        few = q_still.shape[1] * dearer < op.kv_rank * (op.nope + op.value)
        first = ctx.causal and latent.shape[1] == q_still.shape[1]
        form = self.absorbed if few and not first else self.expanded
        return form(packed, q_still, q_turned, latent, k_turned, ctx.mask, causal=ctx.causal)

    def _watch(
        self,
        packed: Packed,
        ctx: Context,
        q_still: Float[Tensor, "B T H N"],
        q_turned: Float[Tensor, "B T H P"],
        latent: Float[Tensor, "B S R"],
        k_turned: Float[Tensor, "B S P"],
    ) -> None:
        """Record the largest scores, turning part and amplitude included, whatever the form."""
        with torch.no_grad():
            k_still = torch.einsum("bsr,hnr->bhsn", latent, packed.key)
            shared = k_turned.unsqueeze(1).expand(-1, self.arch.heads, -1, -1)
            q = torch.cat((q_still, q_turned), -1).transpose(1, 2)
            ctx.watch(q, torch.cat((k_still, shared), -1), scale=self.arch.scale)

    def expanded(
        self,
        packed: Packed,
        q_still: Float[Tensor, "B T H N"],
        q_turned: Float[Tensor, "B T H P"],
        latent: Float[Tensor, "B S R"],
        k_turned: Float[Tensor, "B S P"],
        mask: Tensor | None,
        *,
        causal: bool,
    ) -> Float[Tensor, "B T H V"]:
        """Make every head's keys and values from the latents.

        Values are padded with zeros to the width of a key, or keys to that of a value: the fused
        kernels take one width only, and without them all scores are written out.
        """
        op = self.arch
        heads = F.linear(latent, packed.kv_up).unflatten(-1, (op.heads, -1))
        k_still, v = heads.split((op.nope, op.value), dim=-1)
        shared = k_turned.unsqueeze(2).expand(-1, -1, op.heads, -1)
        q, k = torch.cat((q_still, q_turned), -1), torch.cat((k_still, shared), -1)
        q, k, v = (_padded(part, max(op.key, op.value)).transpose(1, 2) for part in (q, k, v))
        y = attend(q, k, v, mask=mask, causal=causal, scale=op.scale)
        return y.transpose(1, 2)[..., : op.value]

    def absorbed(
        self,
        packed: Packed,
        q_still: Float[Tensor, "B T H N"],
        q_turned: Float[Tensor, "B T H P"],
        latent: Float[Tensor, "B S R"],
        k_turned: Float[Tensor, "B S P"],
        mask: Tensor | None,
        *,
        causal: bool,
    ) -> Float[Tensor, "B T H V"]:
        """Let every head read the latents themselves, the softmax in float32 at least."""
        op, (rows, new) = self.arch, q_still.shape[:2]
        if causal:
            stored = latent.shape[1]
            every = torch.ones(new, stored, dtype=torch.bool, device=latent.device)
            mask = every.tril(stored - new)
        q_latent = torch.bmm(_by_head(q_still), packed.key)  # [H, B * T, R]
        q_latent = q_latent.unflatten(1, (rows, new)).transpose(0, 1).flatten(1, 2)
        turned = q_turned.transpose(1, 2).flatten(1, 2)  # [B, H * T, P]
        score = torch.bmm(turned, k_turned.transpose(1, 2))
        score = torch.baddbmm(
            score, q_latent, latent.transpose(1, 2), beta=op.scale, alpha=op.scale
        )
        score = score.unflatten(1, (op.heads, new))  # [B, H, T, S]
        if mask is not None:
            score = score.masked_fill(~mask, -torch.inf)
        wide = None if score.dtype == torch.float64 else torch.float32
        weight = score.softmax(-1, dtype=wide).to(latent.dtype)
        read = torch.bmm(weight.flatten(1, 2), latent).unflatten(1, (op.heads, new))
        y = torch.bmm(read.transpose(0, 1).flatten(1, 2), packed.value)
        return y.unflatten(1, (rows, new)).permute(1, 2, 0, 3)


@cache
def _by_halves(rope: arch.Rope) -> arch.Rope:
    return replace(rope, pairs="half")  # kept, for a description checks itself whenever it is made


def _padded(x: Float[Tensor, "B T H K"], width: int) -> Float[Tensor, "B T H W"]:
    more = width - x.shape[-1]
    return F.pad(x, (0, more)) if more else x


def _by_head(x: Float[Tensor, "B T H N"]) -> Float[Tensor, "H N2 N"]:
    return x.permute(2, 0, 1, 3).flatten(1, 2)
