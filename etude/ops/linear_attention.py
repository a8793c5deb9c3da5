"""Linear attention with a fixed decay per head: recurrence, form in blocks, one step.

S_t = exp(-s_h) S_{t-1} + k_t v_t^T and o_t = q_t^T S_t, without scale and without denominator. The
state S [B, H, K, W] begins at zero, or where an earlier pass has left it. All forms work in float32
at least: at bf16 the decay of a late layer, 1 - 5e-5, would round to 1. Every decay is the
exponential of a number that is not positive, so that nothing overflows however long a block is.

Padding does not move the state, and a document packed behind another begins with an empty one.

Source: arXiv:2501.08313, section 2.2.
"""

import torch
import torch.nn.functional as F

from etude.ops.wide import at_least_float32
from etude.typing import Bool, Float, Int, Tensor

BLOCK = 64  # tokens of a block: of 32 to 256 the fastest on a CPU for heads of 24 to 128
STRIP = 16  # blocks worked on together


def recurrence(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H W"],
    rates: Float[Tensor, " H"],
    *,
    state: Float[Tensor, "B H K W"] | None = None,
    valid: Bool[Tensor, "B T"] | None = None,
    segments: Int[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H W"], Float[Tensor, "B H K W"]]:
    """Work token by token, as the formula reads: the reference of the two others.

    The arguments are those of `in_blocks`.
    """
    state = _empty(q, v) if state is None else state
    decay, out = torch.exp(-rates.to(state.dtype)).view(-1, 1, 1), []
    for t in range(q.shape[1]):
        if segments is not None and t > 0:
            state = torch.where(_rows(segments[:, t] == segments[:, t - 1]), state, 0.0)
        key, value = k[:, t].to(state.dtype), v[:, t].to(state.dtype)
        moved = decay * state + key.unsqueeze(-1) * value.unsqueeze(-2)
        state = moved if valid is None else torch.where(_rows(valid[:, t]), moved, state)
        out.append((q[:, t].to(state.dtype).unsqueeze(-1) * state).sum(2))
    return torch.stack(out, 1).to(v.dtype), state


def step(
    q: Float[Tensor, "B 1 H K"],
    k: Float[Tensor, "B 1 H K"],
    v: Float[Tensor, "B 1 H W"],
    decay: Float[Tensor, "H 1 1"],
    state: Float[Tensor, "B H K W"],
    *,
    valid: Bool[Tensor, "B 1"] | None = None,
) -> Float[Tensor, "B 1 H W"]:
    """Return the output of one token per row, and move `state` in place.

    A new state per token would cost 2.6 times as much (16 rows of 8 heads of 48: 174 for 68 us).

    Args:
        q, k, v: of one token.
        decay: exp(-rates), in the dtype of the state.
        state: what the tokens before have left; no copy is made.
        valid: false where a row has no token; its state stays.
    """
    q, k, v, kind = (*(x.to(state.dtype).transpose(1, 2) for x in (q, k, v)), v.dtype)
    if valid is not None:
        here = _rows(valid[:, 0])
        decay, k = torch.where(here, decay, 1.0), k * here
    state.mul_(decay).addcmul_(k.transpose(2, 3), v)
    return torch.matmul(q, state).transpose(1, 2).to(kind)  # [B, H, 1, W] turned


def in_blocks(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H W"],
    rates: Float[Tensor, " H"],
    *,
    state: Float[Tensor, "B H K W"] | None = None,
    valid: Bool[Tensor, "B T"] | None = None,
    segments: Int[Tensor, "B T"] | None = None,
    block: int = BLOCK,
) -> tuple[Float[Tensor, "B T H W"], Float[Tensor, "B H K W"]]:
    """Work on blocks as products of matrices: O(T (block + K)) per head and channel.

    Args:
        q, k, v: what each token asks, offers and gives.
        rates: decay per token of each head, 0 or more.
        state: what an earlier pass left; the document of the first token goes on from it.
        valid: false on padding, left or right of a row's tokens.
        segments: document of each token; the state starts anew wherever it changes.
        block: most tokens of a block; it changes no value but by rounding.

    Returns:
        Outputs in the dtype of `v` (arbitrary where not valid), and the state after the last token.
    """
    state = _empty(q, v) if state is None else state
    wide, length = state.dtype, q.shape[1]
    count = -(-length // block)
    block = -(-length // count)  # as even as they go: 65 tokens are 33 + 32
    q, k, v, kind = q.to(wide), k.to(wide), v.to(wide), v.dtype
    rates = rates.to(wide)
    clock = torch.arange(1, length + 1, device=q.device).unsqueeze(0)
    if valid is not None:
        clock, k = valid.cumsum(1), k * valid[..., None, None]
    runs = None if segments is None else _runs(segments)
    if short := count * block - length:  # further tokens that bring nothing, in no time
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, short)) for x in (q, k, v))
        clock, runs = _longer(clock, short), None if runs is None else _longer(runs, short)
    inside, size, out = _inside(rates, block), STRIP * block, []
    since = (clock.new_zeros(len(clock), 1), None if runs is None else runs[:, :1])
    strips = zip(q.split(size, 1), k.split(size, 1), v.split(size, 1), strict=True)
    for n, parts in enumerate(strips):
        at = slice(n * size, (n + 1) * size)
        times = (clock[:, at], None if runs is None else runs[:, at])
        y, state = _strip(parts, state, rates, inside, times, since, block)
        since = (times[0][:, -1:], None if times[1] is None else times[1][:, -1:])
        out.append(y)
    y = out[0] if len(out) == 1 else torch.cat(out, 1)
    return y[:, :length].to(kind), state


Times = tuple[Tensor, Tensor | None]  # tokens counted so far [R, T], R = 1 or B, and runs [B, T]


def _strip(
    parts: tuple[Tensor, Tensor, Tensor],
    state: Tensor,
    rates: Tensor,
    inside: Tensor,
    times: Times,
    since: Times,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Work on a few blocks of q, k and v [B, N * C, H, K] behind a state, all at once."""
    q, k, v = (x.unflatten(1, (-1, block)).permute(0, 3, 1, 2, 4) for x in parts)
    query, key, carry, same = _decays(rates, times, since, block)
    weights = torch.matmul(q, k.transpose(-1, -2)).mul_(inside)  # [B, H, N, C, C]
    if same is not None:
        weights = weights.mul_(same)
    grown = torch.matmul((k * key).transpose(-1, -2), v)  # [B, H, N, K, W]
    states = torch.cat((state.unsqueeze(2), grown), 2)
    states = torch.matmul(carry, states.flatten(3)).unflatten(3, state.shape[2:])
    before, after = states.split((grown.shape[2], 1), 2)
    y = torch.matmul(weights, v) + torch.matmul(q * query, before)
    return y.permute(0, 2, 3, 1, 4).flatten(1, 2), after.squeeze(2)


def _decays(
    rates: Tensor, times: Times, since: Times, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return what a strip's products are multiplied with.

    Returns:
        From the border before a block to its tokens [R, H, N, C, 1], from tokens to the border
        behind [R, H, N, C, 1], from each border to each later one [R, H, N + 1, N + 1], and which
        tokens of a block are of one document [B, 1, N, C, C]; 0 between documents.
    """
    clock = times[0].unflatten(1, (-1, block))
    borders = torch.cat((since[0], clock[..., -1]), 1)
    query = _fall(rates, clock - borders[:, :-1, None])
    key = _fall(rates, borders[:, 1:, None] - clock)
    carry = _fall(rates, borders[:, :, None] - borders[:, None, :]).tril()
    same = None
    if times[1] is not None and since[1] is not None:
        runs = times[1].unflatten(1, (-1, block))
        ends = torch.cat((since[1], runs[..., -1]), 1)
        query = query * (runs == ends[:, :-1, None]).unsqueeze(1)
        key = key * (runs == ends[:, 1:, None]).unsqueeze(1)
        carry = carry * (ends[:, :, None] == ends[:, None, :]).unsqueeze(1)
        same = (runs[..., :, None] == runs[..., None, :]).unsqueeze(1)
    return query.unsqueeze(-1), key.unsqueeze(-1), carry, same


def _inside(rates: Tensor, block: int) -> Tensor:
    """Decay from token j to token i of a block, 0 where j is later: [1, H, 1, C, C]."""
    steps = torch.arange(block, device=rates.device)
    return _fall(rates, (steps[:, None] - steps).unsqueeze(0)).tril().unsqueeze(2)


def _fall(rates: Tensor, tokens: Tensor) -> Tensor:
    """exp(-rate * tokens): [R, ...] to [R, H, ...]; where `tokens` is negative 1."""
    rates = rates.view(-1, *[1] * (tokens.ndim - 1))
    return torch.exp(-rates * tokens.clamp(min=0).to(rates.dtype).unsqueeze(1))


def _empty(q: Tensor, v: Tensor) -> Tensor:
    wide = at_least_float32(q)
    return q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=wide)


def _rows(valid: Bool[Tensor, " B"]) -> Bool[Tensor, "B 1 1 1"]:
    return valid.view(-1, 1, 1, 1)


def _runs(segments: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Number the runs of equal segments of each row, from 0."""
    changes = (segments[:, 1:] != segments[:, :-1]).cumsum(1)
    return F.pad(changes, (1, 0))


def _longer(counts: Tensor, by: int) -> Tensor:
    return torch.cat((counts, counts[:, -1:].expand(-1, by)), 1)
