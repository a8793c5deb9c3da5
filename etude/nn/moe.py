"""Mixture of experts: a router, a stack of experts, and a shared expert that sees every token."""

from collections.abc import Callable

import torch
from torch import nn

from etude import arch
from etude.nn.context import Context, Route
from etude.nn.linear import Linear
from etude.nn.mlp import ACTIVATIONS, FUSED, MLP
from etude.ops import route
from etude.ops.experts import Packed, Stack, by_group, by_index, by_loop, by_slice, pack
from etude.ops.quant import pack_int8, unpack_int8
from etude.ops.select import Twin, experts_product, experts_twin, kernels
from etude.typing import Float, Int, Tensor

FEW = 32  # tokens up to which one call of a kernel routes faster than torch


class Router(nn.Module):
    """Scores of all experts, and which of them each token uses."""

    def __init__(self, dim: int, op: arch.MoE):
        super().__init__()
        self.arch, self.active = op.router, op.active
        kind = torch.float32 if op.router.wide else None
        self.weight = nn.Parameter(torch.empty(op.experts, dim, dtype=kind))
        zeros = torch.zeros(op.experts, dtype=torch.float32)  # whatever the default dtype is
        self.register_buffer("bias", zeros if op.router.bias else None)

    def forward(
        self, x: Float[Tensor, "N D"], given: Int[Tensor, "N A"] | None = None
    ) -> tuple[Float[Tensor, "N E"], Int[Tensor, "N A"], Float[Tensor, "N A"]]:
        """Return the scores without bias, the chosen experts, and their weights.

        Where experts are `given` (not -1) they are taken as chosen; their weights are of the scores
        now, so that the router learns (routing replay: GSPO, arXiv:2507.18071, section 5.3).
        """
        rule = self.arch
        fast = kernels(x)
        if given is None and fast is not None and rule.group_topk >= rule.groups and len(x) <= FEW:
            sigmoid, how = rule.score == "sigmoid", (self.active, rule.normalize, rule.scale)
            return fast.route(x, self.weight, self.bias, sigmoid, *how)
        scores = route.score(x, self.weight, kind=rule.score)
        chosen = route.choose(
            scores, self.bias, active=self.active, groups=rule.groups, group_topk=rule.group_topk
        )
        if given is not None:
            chosen = torch.where(given >= 0, given, chosen)
        weights = route.weigh(scores, chosen, normalize=rule.normalize, scale=rule.scale)
        return scores, chosen, weights

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Router":
        """Move with the model, but keep the bias float32, and a wide weight.

        Served at bf16, a bias near 7 has 8 levels and 98 % of tokens change experts.
        """
        bias, weight = self.bias, self.weight.data
        super()._apply(fn, recurse)
        if bias is not None and self.bias.dtype != torch.float32:
            self.bias = bias.to(self.bias.device)
        if self.arch.wide and self.weight.dtype in (torch.bfloat16, torch.float16):
            self.weight.data = weight.to(self.weight.device)
        return self


class Experts(nn.Module):
    """All routed experts of a layer as three stacked tensors."""

    gate_scale: Tensor | None  # of int8 weights alone, [E, F]
    up_scale: Tensor
    down_scale: Tensor  # [E, D]

    def __init__(self, dim: int, op: arch.MoE):
        super().__init__()
        dim = op.latent or dim
        wide, narrow = (op.experts, op.expert.hidden, dim), (op.experts, dim, op.expert.hidden)
        self.gate = nn.Parameter(torch.empty(wide)) if op.expert.gated else None
        self.up = nn.Parameter(torch.empty(wide))
        self.down = nn.Parameter(torch.empty(narrow))
        self.act = ACTIVATIONS[op.expert.activation]
        self.twin: Twin | None = None  # None lets `ops.select` choose
        self.silu = FUSED.get(op.expert.activation)
        self.int8 = False

    def pack(self) -> Packed:
        """The stack laid out for serving on a CPU."""
        return pack(self.stack())

    def stack(self) -> Stack:
        """The weights, in the dtype of their scales where they are stored in int8."""
        gate, up, down = self.gate, self.up, self.down
        if self.int8:
            kind = self.up_scale.dtype  # that of the model, should it have been moved to another
            up = unpack_int8(up, self.up_scale, dtype=kind)
            down = unpack_int8(down, self.down_scale, dtype=kind)
            if gate is not None and self.gate_scale is not None:
                gate = unpack_int8(gate, self.gate_scale, dtype=kind)
        return Stack(gate, up, down)

    def round(self) -> None:
        """Store the weights in int8, for inference; their scales stand beside them."""
        for name in ("gate", "up", "down"):
            weight = getattr(self, name)
            values, scale = (None, None) if weight is None else pack_int8(weight)
            delattr(self, name)
            self.register_buffer(name, values)
            self.register_buffer(f"{name}_scale", scale)
        self.int8 = True

    def forward(
        self,
        x: Float[Tensor, "N D"],
        chosen: Int[Tensor, "N A"],
        weights: Float[Tensor, "N A"],
        ctx: Context,
    ) -> Float[Tensor, "N D"]:
        """Sum each token's chosen experts under its weights."""
        serving = ctx.cache is not None and not torch.is_grad_enabled()
        held = Stack(self.gate, self.up, self.down)
        how = {"serving": serving, "int8": self.int8, "fused": self.silu is not None}
        twin = self.twin or experts_twin(x, chosen.shape[1], held, **how)
        match twin:
            case "native":
                scales = [self.gate_scale, self.up_scale, self.down_scale] if self.int8 else []
                parts = [[p for p in parts if p is not None] for parts in (held, scales)]
                return kernels(x, always=True).experts(x, chosen, weights, *parts, self.silu)
            case "index":
                packed, gated = Packed(*ctx.packed(self)), self.gate is not None
                return by_index(x, chosen, weights, packed, self.act, gated=gated)
            case "slice":
                return by_slice(x, chosen, weights, self.stack(), self.act)
            case "group":
                return by_group(
                    x, chosen, weights, self.stack(), self.act, product=experts_product(x)
                )
            case "loop":
                return by_loop(x, chosen, weights, self.stack(), self.act)


class MoE(nn.Module):
    """sum_i w_i expert_i(x) + shared(x): the shared expert is neither scaled nor gated.

    With a latent width the experts see latent_in(x) and their sum passes through latent_out.

    Source: arXiv:2508.06471, section 2.1; LatentMoE: arXiv:2512.20856.
    """

    def __init__(self, dim: int, op: arch.MoE):
        super().__init__()
        self.router = Router(dim, op)
        self.experts = Experts(dim, op)
        self.shared = MLP(dim, op.shared) if op.shared else None
        self.latent_in = Linear(dim, op.latent, bias=False) if op.latent else None
        self.latent_out = Linear(op.latent, dim, bias=False) if op.latent else None

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Route every token; tell `ctx.routes` when it listens."""
        flat = x.flatten(0, 1)
        scores, chosen, weights = self.router(flat, ctx.replayed())
        narrow = flat if self.latent_in is None else self.latent_in(flat)
        y = self.experts(narrow, chosen, weights, ctx)
        y = (y if self.latent_out is None else self.latent_out(y)).view_as(x)
        if ctx.routes is not None:
            ctx.routes.append(self._route(x, scores, chosen, ctx))
        return y if self.shared is None else y + self.shared(x, ctx)

    def _route(self, x: Tensor, scores: Tensor, chosen: Tensor, ctx: Context) -> Route:
        rows = x.shape[:2]
        valid = ctx.valid if ctx.valid is not None else x.new_ones(rows, dtype=torch.bool)
        return Route(ctx.layer, scores.unflatten(0, rows), chosen.unflatten(0, rows), valid)
