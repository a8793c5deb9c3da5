"""Running the chosen experts: a loop that reads like the formula, and three faster twins.

All compute sum_a weight[n, a] * down_e(act(gate_e x_n) * up_e x_n) with e = chosen[n, a].

| twin | runs | good for |
|-|-|-|
| `by_loop` | one expert after the other over a mask | reading, tests |
| `by_group` | tokens sorted by expert, one product per slice of them | training; any device |
| `by_slice` | the same without a gradient, one expert after the other | serving on a CPU |
| `by_index` | the chosen experts by number, laid out for it | decoding a token or two on a CPU |

`by_group` takes the product as an argument: `slices` here, or the grouped kernel of a GPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from etude.typing import Float, Int, Tensor

Activation = Callable[[Tensor], Tensor]
Product = Callable[..., tuple[Tensor, ...]]  # of `slices` and `grouped`


class Stack(NamedTuple):
    """Weights of all experts of a layer; `gate` is None for experts without a gate."""

    gate: Tensor | None  # [E, F, D]
    up: Tensor  # [E, F, D]
    down: Tensor  # [E, D, F]


class Packed(NamedTuple):
    """The same for few tokens: per expert two matrices with the inner dimension first."""

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

    No gradient is recorded. The numbers are read by the host, which stops a GPU; gathering the
    matrices instead moves each three times.
    """
    rows = []
    for row, share, picks in zip(x.split(1), weights.to(x.dtype), chosen.tolist(), strict=True):
        hidden = torch.cat([torch.mm(row, packed.wide[e]) for e in picks])
        if gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = act(gate).mul_(up)
        else:
            hidden = act(hidden)
        # the weight commutes with `down`, and `hidden` is narrower
        first, *others = hidden.mul_(share.unsqueeze(-1)).split(1)
        y = torch.mm(first, packed.down[picks[0]])
        for one, e in zip(others, picks[1:], strict=True):
            y.addmm_(one, packed.down[e])
        rows.append(y)
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def by_slice(
    x: Float[Tensor, "N D"],
    chosen: Int[Tensor, "N A"],
    weights: Float[Tensor, "N A"],
    stack: Stack,
    act: Activation,
) -> Float[Tensor, "N D"]:
    """One expert after the other on the sorted tokens, whose rows stay in the cache meanwhile.

    No gradient is recorded, and no copy of the weights is needed.
    """
    flat, active = chosen.flatten(), chosen.shape[1]
    order = flat.argsort(stable=True)
    counts = flat.bincount(minlength=len(stack.up)).tolist()
    tokens = (order // active).split(counts)
    shares = weights.flatten().index_select(0, order).to(x.dtype).unsqueeze(-1).split(counts)
    out = torch.zeros_like(x)
    for e, (token, share) in enumerate(zip(tokens, shares, strict=True)):
        if counts[e]:
            rows = x.index_select(0, token)
            hidden = F.linear(rows, stack.up[e])
            gate = None if stack.gate is None else act(F.linear(rows, stack.gate[e]))
            hidden = act(hidden) if gate is None else gate.mul_(hidden)
            out.index_add_(0, token, F.linear(hidden.mul_(share), stack.down[e]))
    return out


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
    wide = (stack.up,) if stack.gate is None else (stack.gate, stack.up)
    share = weights.flatten().index_select(0, order).to(x.dtype)
    # the weight commutes with `down`, and `hidden` is narrower
    hidden = _Weighed.apply(act, share.unsqueeze(-1), *product(rows, ends, *wide))
    (done,) = product(hidden, ends, stack.down)
    return _Collect.apply(done, order, back, chosen.shape[1])


class _Weighed(torch.autograd.Function):
    """act(gate) * up * share, or act(up) * share; what lies between is made again, not kept."""

    @staticmethod
    def forward(ctx: Any, act: Activation, share: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(share, *parts)
        ctx.act = act
        hidden = act(parts[0])
        for part in parts[1:]:
            hidden *= part
        return hidden.mul_(share)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        share, first, *up = ctx.saved_tensors
        with torch.enable_grad():
            first = first.detach().requires_grad_()
            active = ctx.act(first)
        inner, made = grads[0] * share, active.detach()
        d_up = [inner * made for _ in up]
        d_share = (grads[0] * made).mul_(up[0]) if up else grads[0] * made
        d_active = inner.mul_(up[0]) if up else inner
        (d_first,) = torch.autograd.grad(active, first, d_active)
        return None, d_share.sum(-1, keepdim=True), d_first, *d_up


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
        # gathers and adds in one pass: 1.1 ms for 4.4 with a copy in between (4,096 x 4 of 384)
        return F.embedding_bag(back.view(-1, active), rows, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        order, back = ctx.saved_tensors
        return _Spread.apply(grads[0], order, back, ctx.active), None, None, None


def slices(
    rows: Float[Tensor, "M J"], ends: Int[Tensor, " E"], *stacks: Float[Tensor, "E _ J"]
) -> tuple[Float[Tensor, "M _"], ...]:
    """Multiply rows ends[e-1]..ends[e] with matrix e of each stack, transposed: plain products.

    The sizes are read by the host, which stops a GPU: there `grouped` is the twin.
    """
    return _Slices.apply(rows, ends.tolist(), *stacks)


def grouped(
    rows: Float[Tensor, "M J"], ends: Int[Tensor, " E"], *stacks: Float[Tensor, "E _ J"]
) -> tuple[Float[Tensor, "M _"], ...]:
    """The same in one kernel per stack."""
    offs = ends.int()
    return tuple(F.grouped_mm(rows, stack.transpose(1, 2), offs=offs) for stack in stacks)


class _Slices(torch.autograd.Function):
    """Products straight into their slice of the result: no copies, no zero-filled gradients.

    All stacks read the same rows, and their gradients meet in one buffer.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ends: list[int], *stacks: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(rows, *stacks)
        ctx.spans = list(zip([0, *ends], ends, strict=False))
        out = tuple(rows.new_empty(rows.shape[0], stack.shape[1]) for stack in stacks)
        for e, (a, b) in enumerate(ctx.spans):
            for y, stack in zip(out, stacks, strict=True):
                torch.mm(rows[a:b], stack[e].t(), out=y[a:b])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *stacks = ctx.saved_tensors
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        needed = ctx.needs_input_grad[2:]
        d_stacks = [torch.empty_like(s) if n else None for s, n in zip(stacks, needed, strict=True)]
        whole = [grad.contiguous() for grad in grads]
        for e, (a, b) in enumerate(ctx.spans):
            for n, (grad, stack, d_stack) in enumerate(zip(whole, stacks, d_stacks, strict=True)):
                if d_rows is not None and n == 0:
                    torch.mm(grad[a:b], stack[e], out=d_rows[a:b])
                elif d_rows is not None:
                    d_rows[a:b].addmm_(grad[a:b], stack[e])
                if d_stack is not None:
                    torch.mm(grad[a:b].t(), rows[a:b], out=d_stack[e])
        return d_rows, None, *d_stacks
