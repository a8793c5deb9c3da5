"""Mamba-2's state space: the recurrence, its chunked form, and one step of it.

S_t = exp(dt_t a_h) S_{t-1} + dt_t x_t B_t^T and y_t = S_t C_t, a state [P, N] for each head.
Letters of the paper: H heads of width P, N the state, G groups of B and C; head h reads group
h // (H / G). Source: arXiv:2405.21060, sections 6 and 7.

A document starts anew where `starts` says so: the decay into its first token is then zero, and that
is all it takes, in every form. Padding has step size zero, which leaves the state as it was.
Everything is float32 at least: a state in 16 bits drifts within a few hundred tokens.
"""

from typing import Any

import torch

from etude.ops.wide import at_least_float32
from etude.typing import Bool, Float, Tensor

FORGET = -1000.0  # exp of it is exactly zero, in float64 too
# Longest chunk of a CPU. 8 x 512 tokens forth and back, 12 heads of 64, state 64: where decays are
# mild 145 ms in chunks of 32, 152 of 64, 190 of 16; where they are strong, so that products of a
# long chunk are denormal numbers, 150, 246 and 188.
CPU_CHUNK = 32


def ssd_reference(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    *,
    state: Float[Tensor, "B H P N"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """Run the recurrence as it reads, token by token.

    Args:
        x: values.
        dt: step sizes, positive on tokens and 0 on padding.
        a: rate of each head, negative.
        b, c: what writes a value into the state, and what reads it.
        state: what earlier tokens left; None is zero.
        starts: true on the first token of each document; None where there is but one.

    Returns:
        y, and the state after the last token.
    """
    x, dt, a, b, c = _widened(x, dt, a, b, c)
    repeat = x.shape[2] // b.shape[2]
    b, c = b.repeat_interleave(repeat, 2), c.repeat_interleave(repeat, 2)
    state = _first(x, b, state)
    rows = []
    for t in range(x.shape[1]):
        decay = (dt[:, t] * a).exp()
        if starts is not None:
            decay = decay * ~starts[:, t, None]
        new = (dt[:, t, :, None] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(-2)
        state = decay[..., None, None] * state + new
        rows.append((state @ c[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(rows, 1), state


def ssd(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    *,
    state: Float[Tensor, "B H P N"] | None = None,
    starts: Bool[Tensor, "B T"] | None = None,
    chunk: int = 128,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """Run the same in chunks: attention inside of each, and one state from each to the next.

    Arguments and results are those of `ssd_reference`. `chunk` is the most tokens of a chunk, of
    which a CPU takes fewer; it moves the results by rounding alone.
    """
    x, dt, a, b, c = _widened(x, dt, a, b, c)
    rates = dt * a
    if starts is not None:
        rates = rates.masked_fill(starts.unsqueeze(-1), FORGET)
    x = x * dt.unsqueeze(-1)
    state, rows = _first(x, b, state), []
    chunk = min(chunk, CPU_CHUNK) if x.device.type == "cpu" else chunk
    cut = [part.split(chunk, 1) for part in (x, rates, b, c)]
    for x, rates, b, c in zip(*cut, strict=True):
        y, state = _chunk(x, rates, b, c, state)
        rows.append(y)
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1), state


def _chunk(
    x: Float[Tensor, "B Q H P"],
    rates: Float[Tensor, "B Q H"],
    b: Float[Tensor, "B Q G N"],
    c: Float[Tensor, "B Q G N"],
    state: Float[Tensor, "B H P N"],
) -> tuple[Float[Tensor, "B Q H P"], Float[Tensor, "B H P N"]]:
    """One chunk; B and C are never repeated, the heads of a group are rows of one product."""
    groups, heads = b.shape[2], x.shape[2]
    rates = rates.transpose(1, 2)  # [B, H, Q]
    decay = _Segments.apply(rates)  # [B, H, Q, Q]
    since = rates.cumsum(-1)  # from the chunk's start up to each token
    b, c = b.transpose(1, 2), c.transpose(1, 2)  # [B, G, Q, N]
    scores = (c @ b.mT).unsqueeze(2)  # [B, G, 1, Q, Q]
    weights = (scores * decay.unflatten(1, (groups, -1))).flatten(1, 2)
    x = x.transpose(1, 2)  # [B, H, Q, P]
    inside = weights @ x
    held = state.unflatten(1, (groups, -1)).flatten(2, 3)  # [B, G, H / G * P, N]
    read = (c @ held.mT).unflatten(-1, (heads // groups, -1))  # [B, G, Q, H / G, P]
    before = read.transpose(2, 3).flatten(1, 2) * since.exp().unsqueeze(-1)
    # what each token leaves for the end of the chunk
    left = (x * decay[..., -1, :].unsqueeze(-1)).unflatten(1, (groups, -1))
    left = left.transpose(-1, -2).flatten(2, 3) @ b  # [B, G, H / G * P, N]
    state = state * since[..., -1].exp()[..., None, None] + left.view_as(state)
    return (inside + before).transpose(1, 2), state


class _Segments(torch.autograd.Function):
    """exp(sum of the rates of tokens j + 1 to i), 0 where j > i: [B, H, Q] to [B, H, Q, Q].

    Each sum is added up on its own: the difference of two long sums would lose the small ones (at
    rates near 6, 1e-4 of the result in float32 against 5e-8). The gradient may take differences:
    its terms are all of one size.
    """

    @staticmethod
    def forward(ctx: Any, rates: Tensor) -> Tensor:
        width = rates.shape[-1]
        ones = torch.ones(width, width, dtype=torch.bool, device=rates.device)
        column = rates.unsqueeze(-1).expand(*rates.shape, width)
        sums = column.masked_fill(~ones.tril(-1), 0.0).cumsum(-2)
        decay = sums.masked_fill_(ones.triu(1), -torch.inf).exp_()
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (decay,) = ctx.saved_tensors
        moved = grads[0] * decay
        ends = moved.sum(-1) - moved.sum(-2)  # of the sum from the chunk's start up to each token
        return ends.flip(-1).cumsum(-1).flip(-1)


def ssd_step(
    x: Float[Tensor, "B H P"],
    dt: Float[Tensor, "B H"],
    a: Float[Tensor, " H"],
    b: Float[Tensor, "B G N"],
    c: Float[Tensor, "B G N"],
    state: Float[Tensor, "B H P N"],
) -> tuple[Float[Tensor, "B H P"], Float[Tensor, "B H P N"]]:
    """Take one token of each row.

    Returns:
        y, and the new state, which takes the place of `state` in memory where no gradient is
        recorded.
    """
    x, dt, a, b, c = _widened(x, dt, a, b, c)
    decay = (dt * a).exp()[..., None, None]
    state = state * decay if torch.is_grad_enabled() else state.mul_(decay)
    batch, width = len(b) * b.shape[1], b.shape[2]
    new = (x * dt.unsqueeze(-1)).reshape(batch, -1, 1)  # heads of a group below each other
    held = state.view(batch, -1, width).baddbmm_(new, b.reshape(batch, 1, width))
    return torch.bmm(held, c.reshape(batch, width, 1)).view_as(x), state


def _widened(*parts: Tensor) -> tuple[Tensor, ...]:
    wide = at_least_float32(parts[0])
    return tuple(part.to(wide) for part in parts)


def _first(x: Tensor, b: Tensor, state: Tensor | None) -> Tensor:
    return x.new_zeros(len(x), *x.shape[2:], b.shape[-1]) if state is None else state.to(x.dtype)
