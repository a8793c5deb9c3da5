"""The state space in its three forms: as it reads, in chunks, and one step at a time.

float64: the forms differ by 6e-15 on outputs of size 4; a decay counted twice or not at all moves
1e-2 or more.
"""

import pytest
import torch

from etude.ops.attention import document_positions
from etude.ops.ssd import _Segments, ssd, ssd_reference, ssd_step

HEADS, WIDTH, STATE = 6, 3, 5
CLOSE = {"atol": 1e-11, "rtol": 1e-11}


def inputs(length, *, batch=2, groups=2, seed=0, dtype=torch.float64):
    """x, dt, a, b, c, and a first state; decays from 0.99 down to 0.05 a token."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    x, dt = normal(batch, length, HEADS, WIDTH), (normal(batch, length, HEADS) - 1).exp()
    b, c = normal(batch, length, groups, STATE), normal(batch, length, groups, STATE)
    a = -torch.linspace(0.03, 3, HEADS, dtype=dtype)
    return [x, dt, a, b, c, normal(batch, HEADS, WIDTH, STATE)]


def steps(x, dt, a, b, c, *, state):
    rows = []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], dt[:, t], a, b[:, t], c[:, t], state)
        rows.append(y)
    return torch.stack(rows, 1), state


def same(ours, theirs, leaves):
    """Both outputs and the gradients of a random sum of them."""
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)
    draw = torch.Generator().manual_seed(9)
    marks = [torch.randn(t.shape, generator=draw, dtype=t.dtype) for t in ours]
    grads = [
        torch.autograd.grad(
            sum((o * m).sum() for o, m in zip(out, marks, strict=True)), leaves, retain_graph=True
        )
        for out in (ours, theirs)
    ]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 23, 33])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_three_forms_agree_in_values_and_gradients_from_a_carried_state(length, groups):
    *parts, state = [t.requires_grad_() for t in inputs(length, groups=groups)]
    told = ssd_reference(*parts, state=state)
    same(ssd(*parts, state=state, chunk=8), told, [*parts, state])
    same(steps(*parts, state=state), told, [*parts, state])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 16, 64])
def test_the_length_of_a_chunk_changes_nothing(chunk):
    *parts, _ = [t.requires_grad_() for t in inputs(29)]
    same(ssd(*parts, chunk=chunk), ssd_reference(*parts), parts)


def test_a_step_without_gradients_writes_over_the_state():
    *parts, state = inputs(1)
    told = ssd_reference(*parts, state=state)
    with torch.no_grad():
        x, dt, a, b, c = (p if p.ndim == 1 else p[:, 0] for p in parts)
        y, after = ssd_step(x, dt, a, b, c, state)
    assert after is state
    torch.testing.assert_close(y, told[0][:, 0], **CLOSE)
    torch.testing.assert_close(state, told[1], **CLOSE)


# borders at a chunk's first token, at its last, in the middle, next to each other
PACKED = [[23], [8, 15], [7, 16], [9, 14], [3, 1, 1, 18], [1] * 23, [4, 4, 4, 11]]


@pytest.mark.parametrize("lengths", PACKED)
def test_documents_packed_in_a_row_equal_separate_rows(lengths):
    *parts, _ = [t.requires_grad_() for t in inputs(23)]
    x, dt, a, b, c = parts
    ids = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])
    starts = document_positions(ids.expand(2, -1)) == 0
    cut = [part.split(lengths, 1) for part in (x, dt, b, c)]
    alone = [ssd_reference(x, dt, a, b, c) for x, dt, b, c in zip(*cut, strict=True)]
    told = torch.cat([y for y, _ in alone], 1), alone[-1][1]
    for form in (ssd_reference, lambda *p, starts: ssd(*p, starts=starts, chunk=8)):
        same(form(*parts, starts=starts), told, parts)


def test_padding_does_not_move_the_state():
    *parts, state = inputs(9)
    parts[1][:, 4:] = 0.0
    _, after = ssd(*parts, state=state, chunk=4)
    short = [p if p.ndim == 1 else p[:, :4] for p in parts]
    torch.testing.assert_close(after, ssd(*short, state=state, chunk=4)[1], **CLOSE)


@pytest.mark.parametrize("cuts", [[23], [5, 18], [8, 8, 7], [1, 20, 2]])
def test_any_cut_with_a_carried_state_gives_the_whole(cuts):
    *parts, state = inputs(23)
    told = ssd(*parts, state=state, chunk=8)
    rows = []
    for x, dt, b, c in zip(*(p.split(cuts, 1) for p in parts if p.ndim > 1), strict=True):
        y, state = ssd(x, dt, parts[2], b, c, state=state, chunk=8)
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), told[0], **CLOSE)
    torch.testing.assert_close(state, told[1], **CLOSE)


def test_float32_keeps_small_decays_behind_large_ones():
    """Rates that add up to 300 within a chunk: 1e-7 off, where a difference of sums is 1e-5 off."""
    rates = -torch.rand(1, 1, 128, generator=torch.Generator().manual_seed(0)) * 9
    rates[..., 64:] *= 1e-3
    exact, sums = _Segments.apply(rates.double()), rates.cumsum(-1)
    torch.testing.assert_close(_Segments.apply(rates).double(), exact, atol=3e-7, rtol=0)
    lossy = (sums[..., :, None] - sums[..., None, :]).exp().tril().double()
    assert (lossy - exact).abs().max() > 1e-5


def test_a_narrow_dtype_is_worked_in_float32():
    *parts, _ = inputs(17, dtype=torch.float32)
    narrow = [p.bfloat16() for p in parts]
    y, state = ssd(*narrow, chunk=8)
    assert y.dtype == state.dtype == torch.float32
    told = ssd_reference(*(p.double() for p in narrow))[0].float()
    # measured 1e-6; a state kept in bfloat16 is 1e-1 off
    torch.testing.assert_close(y, told, atol=1e-4, rtol=0)
