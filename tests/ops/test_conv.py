"""The causal convolution against the library's, cut anywhere, packed, padded and step by step."""

import pytest
import torch

from etude.ops.attention import document_positions
from etude.ops.conv import PIECE, causal_conv, causal_conv_reference, conv_step, next_tail

CHANNELS = 5
# float64: measured 2e-15 on outputs of size 3; a tap on the wrong input moves 1
CLOSE = {"atol": 1e-12, "rtol": 0}


def inputs(length, *, batch=2, taps=4, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return normal(batch, length, CHANNELS), normal(taps, CHANNELS), normal(CHANNELS)


@pytest.mark.parametrize("taps", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, PIECE + 6])
@pytest.mark.parametrize("carried", [False, True])
def test_it_equals_the_librarys_in_values_and_gradients(taps, length, carried):
    x, weight, bias = inputs(length, taps=taps)
    tail = inputs(taps - 1, seed=1)[0] if carried else None
    leaves = [t.requires_grad_() for t in (x, weight, bias, *([tail] if carried else []))]
    ours = causal_conv(x, weight, bias, tail=tail)
    theirs = causal_conv_reference(x, weight, bias, tail=tail)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    mark = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * mark).sum(), leaves, allow_unused=True),
        torch.autograd.grad((theirs * mark).sum(), leaves, allow_unused=True),
        strict=True,
    ):
        if mine is not None and mine.numel():
            torch.testing.assert_close(mine, other, **CLOSE)


def test_without_a_bias_nothing_is_added():
    x, weight, bias = inputs(6)
    torch.testing.assert_close(causal_conv(x, weight, None) + bias, causal_conv(x, weight, bias))
    tail = torch.zeros(2, 3, CHANNELS).double()
    torch.testing.assert_close(
        conv_step(x[:, :1], weight, None, tail=tail), causal_conv(x[:, :1], weight, None)
    )


@pytest.mark.parametrize("cuts", [[11], [4, 7], [1] * 11, [1, 9, 1], [2, 2, 2, 5]])
def test_any_cut_with_a_carried_tail_gives_the_whole(cuts):
    x, weight, bias = inputs(11)
    tail, rows = x.new_zeros(2, 3, CHANNELS), []
    for part in x.split(cuts, 1):
        one = conv_step if part.shape[1] == 1 else causal_conv
        rows.append(one(part, weight, bias, tail=tail))
        tail = next_tail(part, tail)
    torch.testing.assert_close(torch.cat(rows, 1), causal_conv(x, weight, bias), **CLOSE)


def test_documents_packed_in_a_row_equal_separate_rows():
    leaves = x, weight, bias = [t.requires_grad_() for t in inputs(14)]
    segments = torch.tensor([[1, 1, 1, 1, 1, 2, 3, 3, 4, 4, 4, 1, 1, 1]] * 2)
    packed = causal_conv(x, weight, bias, pos=document_positions(segments))
    cut = x.split([5, 1, 2, 3, 3], 1)
    alone = torch.cat([causal_conv_reference(part, weight, bias) for part in cut], 1)
    torch.testing.assert_close(packed, alone, **CLOSE)
    both = [torch.autograd.grad(rows.sin().sum(), leaves) for rows in (packed, alone)]
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def test_the_tail_holds_the_last_valid_inputs_of_each_row():
    x, *_ = inputs(5, batch=4)
    tail = inputs(3, batch=4, seed=2)[0]
    lengths = torch.tensor([5, 3, 1, 0])
    valid = torch.arange(5) < lengths[:, None]
    found = next_tail(x, tail, valid)
    for row, length in enumerate(lengths):
        told = torch.cat((tail[row], x[row, :length]))[-3:]
        torch.testing.assert_close(found[row], told, atol=0, rtol=0)


def test_a_narrow_dtype_is_summed_wide_and_comes_back():
    x, weight, bias = (t.float() for t in inputs(9))
    narrow = [t.bfloat16() for t in (x, weight, bias)]
    y = causal_conv(*narrow)
    assert y.dtype == torch.bfloat16
    wide = causal_conv(*(t.float() for t in narrow))
    assert torch.equal(y, wide.bfloat16())
