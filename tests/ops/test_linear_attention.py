"""Linear attention with decay: three forms of one recurrence, padding, packing, long blocks."""

import pytest
import torch

from etude.ops.linear_attention import in_blocks, recurrence, step

RATES = torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)  # the last head does not forget
HEADS, KEY, VALUE = 3, 5, 4


def draw(rows, length, dtype=torch.float64):
    """Random q, k, v; values are narrower than keys, so that no transposition goes unseen."""
    generator = torch.Generator().manual_seed(length)
    widths = (KEY, KEY, VALUE)
    return [torch.randn(rows, length, HEADS, w, generator=generator, dtype=dtype) for w in widths]


def one_by_one(q, k, v, rates, *, state=None, valid=None):
    """The one-token form over a row."""
    state = q.new_zeros(len(q), HEADS, KEY, VALUE) if state is None else state
    decay, out = torch.exp(-rates).view(-1, 1, 1), []
    for t in range(q.shape[1]):
        at = slice(t, t + 1)
        state = state.clone()  # the step moves it in place
        here = None if valid is None else valid[:, at]
        out.append(step(q[:, at], k[:, at], v[:, at], decay, state, valid=here))
    return torch.cat(out, 1), state


def learned(form, inputs, **how):
    """Outputs, last state, and gradients of a function of both."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out, state = form(*inputs, RATES.to(inputs[0].dtype), **how)
    weight = torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()
    loss = (out * weight).sum() + state.sin().sum()
    return [out, state, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize(("length", "block"), [(1, 64), (5, 4), (13, 4), (75, 32), (200, 7)])
def test_the_three_forms_agree_in_values_and_gradients(length, block):
    inputs = draw(2, length)
    state = torch.randn(2, HEADS, KEY, VALUE, dtype=torch.float64)
    expected = learned(recurrence, inputs, state=state)
    for form, how in ((in_blocks, {"block": block}), (one_by_one, {})):
        found = learned(form, inputs, state=state, **how)
        for a, b in zip(found, expected, strict=True):  # measured 1e-14; float64
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_a_token_reads_each_earlier_one_by_its_decayed_product():
    """o_t = sum_j exp(-s (t - j)) (q_t . k_j) v_j: the present token counts with weight 1."""
    q, k, v = draw(2, 29)
    ago = (torch.arange(29)[:, None] - torch.arange(29)).double()
    decay = torch.exp(-RATES[:, None, None] * ago.clamp(min=0)).tril()
    scores = torch.einsum("bthk,bshk->bhts", q, k) * decay
    expected = torch.einsum("bhts,bshw->bthw", scores, v)
    for form in (recurrence, in_blocks, one_by_one):
        torch.testing.assert_close(form(q, k, v, RATES)[0], expected)


def test_long_rows_in_float32_stay_near_the_recurrence():
    inputs = draw(1, 3000, torch.float32)
    expected, state = recurrence(*inputs, RATES.float())
    found, last = in_blocks(*inputs, RATES.float())
    # measured 2e-6 of the largest value; a lost decay of one block moves it by 1e-1
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (last - state).abs().max() < 2e-5 * state.abs().max()


@pytest.mark.parametrize("block", [64, 256])
def test_no_decay_is_the_exponential_of_a_positive_number(block):
    """At rate 50 a factor exp(+s i) would be infinite from the second token on."""
    inputs = [x.float().requires_grad_() for x in draw(1, 300)]
    out, _ = in_blocks(*inputs, torch.tensor([50.0, 1.0, 0.0]), block=block)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(x.grad.isfinite().all() for x in inputs)
    own = torch.einsum("bthk,bthk,bthw->bthw", *inputs)  # at rate 50 a token reads itself alone
    torch.testing.assert_close(out[..., 0, :], own[..., 0, :], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [4, 7, 64])
def test_packed_documents_equal_separate_runs(block):
    lengths = (5, 1, 17, 30, 11)
    q, k, v = draw(1, sum(lengths))
    segments = torch.repeat_interleave(torch.tensor([3, 1, 2, 1, 0]), torch.tensor(lengths))
    whole, last = in_blocks(q, k, v, RATES, segments=segments[None], block=block)
    at = 0
    for length in lengths:
        part = slice(at, at + length)
        alone, state = recurrence(q[:, part], k[:, part], v[:, part], RATES)
        torch.testing.assert_close(whole[:, part], alone)
        at += length
    torch.testing.assert_close(last, state)


def test_the_gradient_of_packed_documents_is_that_of_the_recurrence():
    inputs, segments = draw(2, 90), torch.arange(90).div(17, rounding_mode="floor").expand(2, -1)
    expected = learned(recurrence, inputs, segments=segments)
    for a, b in zip(learned(in_blocks, inputs, segments=segments, block=8), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", [recurrence, in_blocks, one_by_one])
def test_padding_moves_no_state(form, side):
    """A state of its own stands before the row, and the row's last one behind the padding."""
    inputs, state = draw(1, 21), torch.randn(1, HEADS, KEY, VALUE, dtype=torch.float64)
    alone, last = recurrence(*inputs, RATES, state=state)
    junk = draw(1, 9)
    order = (junk, inputs) if side == "left" else (inputs, junk)
    padded = [torch.cat(pair, 1) for pair in zip(*order, strict=True)]
    valid = torch.ones(1, 30, dtype=torch.bool)
    valid[:, slice(0, 9) if side == "left" else slice(21, 30)] = False
    how = {"block": 4} if form is in_blocks else {}
    out, found = form(*padded, RATES, state=state, valid=valid, **how)
    torch.testing.assert_close(out[valid][None], alone)
    torch.testing.assert_close(found, last)


@pytest.mark.parametrize("cuts", [(1, 50), (7, 44), (32, 19), (3, 1, 1, 30, 16)])
def test_pieces_with_a_carried_state_equal_the_whole(cuts):
    inputs = draw(2, 51)
    whole, last = in_blocks(*inputs, RATES, block=8)
    state, out = None, []
    for piece in zip(*(x.split(cuts, 1) for x in inputs), strict=True):
        y, state = in_blocks(*piece, RATES, state=state, block=8)
        out.append(y)
    torch.testing.assert_close(torch.cat(out, 1), whole)
    torch.testing.assert_close(state, last)


def test_a_slow_decay_survives_narrow_inputs():
    """exp(-1e-4) is 1 in bfloat16; over 4,096 tokens the state must be 18 % smaller than a sum."""
    ones = torch.ones(1, 4096, 1, 1, dtype=torch.bfloat16)
    rates = torch.tensor([1e-4])
    out, state = in_blocks(ones, ones, ones, rates)
    closed = (1 - torch.exp(-rates.double() * 4096)) / (1 - torch.exp(-rates.double()))
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert state.item() == pytest.approx(closed.item(), rel=1e-5)
    step(ones[:, :1], ones[:, :1], ones[:, :1], torch.exp(-rates).view(1, 1, 1), state)
    assert state.item() == pytest.approx(closed.item() * 0.9999 + 1, rel=1e-5)
