"""Running the chosen experts: a loop that reads like the formula, and two faster twins.

All compute sum_a weight[n, a] * down_e(act(gate_e x_n) * up_e x_n) with e = chosen[n, a].

| twin | runs | good for |
|-|-|-|
| `by_loop` | one expert after the other over a mask | reading, tests |
| `by_group` | tokens sorted by expert, one product per slice of them | training; many tokens |
| `by_index` | the matrices of the chosen experts, by number | decoding a token or two |

`by_group` takes the product as an argument: `slices` here, or the grouped kernel of a GPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from etude.typing import Float, Int, Tensor

Activation = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


class Stack(NamedTuple):
    """Weights of all experts of a layer; `gate` is None for experts without a gate."""

    gate: Tensor | None  # [E, F, D]
    up: Tensor  # [E, F, D]
    down: Tensor  # [E, D, F]


class Packed(NamedTuple):
    """The same for `by_index`: per expert two matrices with the inner dimension first."""

    wide: tuple[Tensor, ...]  # E times [D, 2F], gate before up; [D, F] without a gate
    down: tuple[Tensor, ...]  # E times [F, D]


def pack(stack: Stack) -> Packed:
    """Lay the weights out for `by_index`."""
    wide = stack.up if stack.gate is None else torch.cat((stack.gate, stack.up), 1)
    turned = (w.transpose(1, 2).contiguous().unbind() for w in (wide, stack.down))
    return Packed(*turned)


def by_loop(
    x: Float[Tensor, "N D"],
    chosen: Int[Tensor, "N A"],
    weights: Float[Tensor, "N A"],
    stack: Stack,
    act: Activation,
) -> Float[Tensor, "N D"]:
    """Reference: each expert in turn on the tokens that chose it."""
    out = torch.zeros_like(x)
    for e in range(stack.up.shape[0]):
        token, slot = (chosen == e).nonzero(as_tuple=True)
        rows = x[token]
        hidden = F.linear(rows, stack.up[e])
        hidden = act(hidden) if stack.gate is None else act(F.linear(rows, stack.gate[e])) * hidden
        share = weights[token, slot].unsqueeze(-1)
        out = out.index_add(0, token, (F.linear(hidden, stack.down[e]) * share).to(x.dtype))
    return out


def by_index(
    x: Float[Tensor, "N D"],
    chosen: Int[Tensor, "N A"],
    weights: Float[Tensor, "N A"],
    packed: Packed,
    act: Activation,
    *,
    gated: bool = True,
) -> Float[Tensor, "N D"]:
    """Take the matrices of each token's experts by number: no sorting, each weight read once.

    The numbers are read by the host, which stops a GPU; gathering the matrices instead moves each
    three times.
    """
    active, picks, rows = chosen.shape[1], chosen.flatten().tolist(), x.split(1)
    hidden = torch.cat([rows[i // active] @ packed.wide[e] for i, e in enumerate(picks)])
    if gated:
        gate, up = hidden.chunk(2, dim=-1)
        hidden = act(gate) * up
    else:
        hidden = act(hidden)
    hidden = hidden * weights.to(x.dtype).view(-1, 1)  # the weight commutes with `down`
    done = [row @ packed.down[e] for row, e in zip(hidden.split(1), picks, strict=True)]
    return torch.cat(done).view(-1, active, x.shape[1]).sum(1)


def by_group(
    x: Float[Tensor, "N D"],
    chosen: Int[Tensor, "N A"],
    weights: Float[Tensor, "N A"],
    stack: Stack,
    act: Activation,
    *,
    product: Product,
) -> Float[Tensor, "N D"]:
    """Sort tokens by expert, multiply each slice, put the sums back in token order."""
    order = chosen.flatten().argsort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    ends = chosen.flatten().bincount(minlength=stack.up.shape[0]).cumsum(0)
    rows = _Spread.apply(x, order, back, chosen.shape[1])
    hidden = product(rows, stack.up, ends)
    hidden = act(hidden) if stack.gate is None else act(product(rows, stack.gate, ends)) * hidden
    share = weights.flatten().index_select(0, order).to(x.dtype)
    hidden = hidden * share.unsqueeze(
        -1
    )  # the weight commutes with `down`, and `hidden` is narrower
    return _Collect.apply(product(hidden, stack.down, ends), order, back, chosen.shape[1])


class _Spread(torch.autograd.Function):
    """Token rows in expert order, A copies each; the gradient sums copies, it scatters nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, active: int) -> Tensor:
        ctx.save_for_backward(order, back)
        ctx.active = active
        return x.index_select(0, order // active)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        order, back = ctx.saved_tensors
        return _Collect.apply(grads[0], order, back, ctx.active), None, None, None


class _Collect(torch.autograd.Function):
    """The sum over each token's A rows, which stand in expert order: the adjoint of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor, active: int) -> Tensor:
        ctx.save_for_backward(order, back)
        ctx.active = active
        return rows.index_select(0, back).view(-1, active, rows.shape[1]).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        order, back = ctx.saved_tensors
        return _Spread.apply(grads[0], order, back, ctx.active), None, None, None


def slices(
    rows: Float[Tensor, "M J"], matrices: Float[Tensor, "E I J"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "M I"]:
    """Multiply rows ends[e-1]..ends[e] with matrix e transposed: one plain product per expert.

    The sizes are read by the host, which stops a GPU: there `grouped` is the twin.
    """
    return _Slices.apply(rows, matrices, ends.tolist())


def grouped(
    rows: Float[Tensor, "M J"], matrices: Float[Tensor, "E I J"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "M I"]:
    """The same in one kernel."""
    return F.grouped_mm(rows, matrices.transpose(1, 2), offs=ends.int())


class _Slices(torch.autograd.Function):
    """Products straight into their slice of the result: no copies, no zero-filled gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrices: Tensor, ends: list[int]) -> Tensor:
        ctx.save_for_backward(rows, matrices)
        ctx.ends = ends
        out = rows.new_empty(rows.shape[0], matrices.shape[1])
        for e, (a, b) in enumerate(zip([0, *ends], ends, strict=False)):
            torch.mm(rows[a:b], matrices[e].t(), out=out[a:b])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, matrices = ctx.saved_tensors
        grad = grads[0].contiguous()
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        d_matrices = torch.empty_like(matrices) if ctx.needs_input_grad[1] else None
        for e, (a, b) in enumerate(zip([0, *ctx.ends], ctx.ends, strict=False)):
            if d_rows is not None:
                torch.mm(grad[a:b], matrices[e], out=d_rows[a:b])
            if d_matrices is not None:
                torch.mm(grad[a:b].t(), rows[a:b], out=d_matrices[e])
        return d_rows, d_matrices, None
