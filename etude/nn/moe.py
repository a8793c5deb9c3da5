"""Mixture of experts: a router, a stack of experts, and a shared expert that sees every token."""

from collections.abc import Callable

import torch
from torch import nn

from etude import arch
from etude.nn.context import Context, Route
from etude.nn.mlp import ACTIVATIONS, MLP
from etude.ops import route
from etude.ops.experts import Packed, Stack, by_group, by_index, by_loop, pack
from etude.ops.select import Twin, experts_product, experts_twin
from etude.typing import Float, Int, Tensor


class Router(nn.Module):
    """Scores of all experts, and which of them each token uses."""

    def __init__(self, dim: int, op: arch.MoE):
        super().__init__()
        self.arch, self.active = op.router, op.active
        self.weight = nn.Parameter(torch.empty(op.experts, dim))
        zeros = torch.zeros(op.experts, dtype=torch.float32)  # whatever the default dtype is
        self.register_buffer("bias", zeros if op.router.bias else None)

    def forward(self, x: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N E"], Int[Tensor, "N A"]]:
        """Return the scores without bias, and the chosen experts."""
        rule = self.arch
        scores = route.score(x, self.weight, kind=rule.score)
        chosen = route.choose(
            scores, self.bias, active=self.active, groups=rule.groups, group_topk=rule.group_topk
        )
        return scores, chosen

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Router":
        """Move with the model, but keep the bias float32.

        Served at bf16, a bias near 7 has 8 levels and 98 % of tokens change experts.
        """
        bias = self.bias
        super()._apply(fn, recurse)
        if bias is not None and self.bias.dtype != torch.float32:
            self.bias = bias.to(self.bias.device)
        return self


class Experts(nn.Module):
    """All routed experts of a layer as three stacked tensors."""

    def __init__(self, dim: int, op: arch.MoE):
        super().__init__()
        wide, narrow = (op.experts, op.expert.hidden, dim), (op.experts, dim, op.expert.hidden)
        self.gate = nn.Parameter(torch.empty(wide)) if op.expert.gated else None
        self.up = nn.Parameter(torch.empty(wide))
        self.down = nn.Parameter(torch.empty(narrow))
        self.act = ACTIVATIONS[op.expert.activation]
        self.twin: Twin | None = None  # None lets `ops.select` choose

    def pack(self) -> Packed:
        """The stack laid out for gathering the experts of one token."""
        return pack(Stack(self.gate, self.up, self.down))

    def forward(
        self,
        x: Float[Tensor, "N D"],
        chosen: Int[Tensor, "N A"],
        weights: Float[Tensor, "N A"],
        ctx: Context,
    ) -> Float[Tensor, "N D"]:
        """Sum each token's chosen experts under its weights."""
        stack = Stack(self.gate, self.up, self.down)
        twin = self.twin or experts_twin(x, chosen.shape[1], stack, serving=ctx.cache is not None)
        match twin:
            case "index":
                packed = Packed(*ctx.packed(self))
                return by_index(x, chosen, weights, packed, self.act, gated=self.gate is not None)
            case "group":
                return by_group(x, chosen, weights, stack, self.act, product=experts_product(x))
            case "loop":
                return by_loop(x, chosen, weights, stack, self.act)


class MoE(nn.Module):
    """sum_i w_i expert_i(x) + shared(x): the shared expert is neither scaled nor gated.

    Source: arXiv:2508.06471, section 2.1.
    """

    def __init__(self, dim: int, op: arch.MoE):
        super().__init__()
        self.router = Router(dim, op)
        self.experts = Experts(dim, op)
        self.shared = MLP(dim, op.shared) if op.shared else None

    def forward(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Route every token; tell `ctx.routes` when it listens."""
        flat = x.flatten(0, 1)
        scores, chosen = self.router(flat)
        rule = self.router.arch
        weights = route.weigh(scores, chosen, normalize=rule.normalize, scale=rule.scale)
        y = self.experts(flat, chosen, weights, ctx).view_as(x)
        if ctx.routes is not None:
            ctx.routes.append(self._route(x, scores, chosen, ctx))
        return y if self.shared is None else y + self.shared(x, ctx)

    def _route(self, x: Tensor, scores: Tensor, chosen: Tensor, ctx: Context) -> Route:
        rows = x.shape[:2]
        valid = ctx.valid if ctx.valid is not None else x.new_ones(rows, dtype=torch.bool)
        return Route(ctx.layer, scores.unflatten(0, rows), chosen.unflatten(0, rows), valid)
