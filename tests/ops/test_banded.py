"""Banded attention: every twin against one mask over all keys, values and gradients."""

import pytest
import torch

from etude.ops import banded
from etude.ops.attention import cache_mask, document_mask
from etude.ops.banded import (
    attend_banded,
    attend_banded_reference,
    attend_blocks,
    attend_strided,
    band,
)
from etude.ops.select import banded_twin

EXACT = {"atol": 5e-6, "rtol": 0}  # measured 1e-6; a key more or less moves 1e-1
HEADS = [(4, 4), (6, 2)]


def heads(h, g, t, s, b=2):
    shapes = ((b, h, t, 8), (b, g, s, 8), (b, g, s, 8))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def rows(length):
    return torch.arange(length)[None]


def agree(twin, reference, tensors):
    fast, slow = twin(*tensors), reference(*tensors)
    torch.testing.assert_close(fast, slow, **EXACT)
    weight = torch.randn_like(slow)
    pairs = [torch.autograd.grad((y * weight).sum(), tensors) for y in (fast, slow)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, atol=3e-5, rtol=0)


def test_the_window_counts_the_token_itself():
    assert band(rows(4), rows(4), width=2)[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


def test_a_stride_adds_the_multiples_behind_the_window():
    row = band(torch.tensor([[9]]), rows(12), width=2, stride=4)[0, 0, 0]
    assert row.nonzero().flatten().tolist() == [1, 5, 8, 9]


@pytest.mark.parametrize(("h", "g"), HEADS)
@pytest.mark.parametrize(("length", "width"), [(7, 1), (16, 4), (17, 4), (33, 8), (61, 7), (9, 8)])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_blocks_equal_the_masked_reference(h, g, length, width, scale):
    how = {"width": width, "scale": scale}
    agree(
        lambda q, k, v: attend_blocks(q, k, v, **how),
        lambda q, k, v: attend_banded_reference(q, k, v, index=rows(length), **how),
        heads(h, g, length, length),
    )


@pytest.mark.parametrize(("h", "g"), HEADS)
@pytest.mark.parametrize(
    ("length", "width", "stride"), [(29, 3, 4), (33, 8, 5), (40, 4, 10), (21, 2, 1), (19, 5, 30)]
)
def test_the_strided_twin_equals_the_masked_reference(h, g, length, width, stride):
    how = {"width": width, "stride": stride}
    agree(
        lambda q, k, v: attend_strided(q, k, v, **how),
        lambda q, k, v: attend_banded_reference(q, k, v, index=rows(length), **how),
        heads(h, g, length, length),
    )


@pytest.mark.parametrize("twin", ["blocks", "strided"])
def test_packed_documents_stay_apart_in_every_twin(twin):
    segments = torch.tensor([[1] * 13 + [2] * 3 + [3] * 15, [0] * 6 + [1] * 20 + [0] * 5])
    how = {"width": 5} | ({"stride": 4} if twin == "strided" else {})
    fast = attend_strided if twin == "strided" else attend_blocks
    mask = document_mask(segments)
    agree(
        lambda q, k, v: fast(q, k, v, segments=segments, **how),
        lambda q, k, v: attend_banded_reference(q, k, v, index=rows(31), mask=mask, **how),
        heads(4, 2, 31, 31),
    )


@pytest.mark.parametrize("stride", [None, 6])
@pytest.mark.parametrize("length", [1, 5, 6, 19, 20, 97])
def test_whole_rows_equal_the_reference_whatever_twin_is_chosen(length, stride):
    how = {"width": 5, "stride": stride, "index": rows(length)}
    agree(
        lambda q, k, v: attend_banded(q, k, v, **how),
        lambda q, k, v: attend_banded_reference(q, k, v, **how),
        heads(4, 2, length, length),
    )


def test_long_rows_run_in_blocks_and_short_ones_under_a_mask():
    assert banded_twin(2048, 256, None) == banded_twin(2048, 128, 128) == "blocks"
    assert banded_twin(1000, 256, None) == banded_twin(2048, 256, 128) == "mask"


@pytest.mark.parametrize("stride", [None, 6])
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("held", [2, 7, 40])
def test_queries_behind_a_cache_equal_the_reference(new, held, stride):
    index = rows(new) + held
    q, k, v = heads(4, 2, new, held + new)
    mask = None if new == 1 else cache_mask(index, held + new)
    how = {"width": 5, "stride": stride, "index": index}
    fast = attend_banded(q, k, v, mask=mask, **how)
    slow = attend_banded_reference(q, k, v, mask=cache_mask(index, held + new), **how)
    torch.testing.assert_close(fast, slow, **EXACT)


@pytest.mark.parametrize("new", [1, 3])
def test_rows_of_different_length_read_their_own_last_slots(new):
    index = rows(new) + torch.tensor([[37], [0], [4]])
    q, k, v = heads(4, 2, new, 37 + new, b=3)
    mask = cache_mask(index, 37 + new)
    how = {"width": 5, "index": index, "mask": mask}
    torch.testing.assert_close(
        attend_banded(q, k, v, **how), attend_banded_reference(q, k, v, **how), **EXACT
    )


def test_tokens_behind_the_band_are_not_even_touched():
    """A product with NaN is NaN under any mask: what stays finite was computed without it."""
    q, k, v = (x.detach() for x in heads(4, 2, 60, 60))
    k[:, :, 0] = v[:, :, 0] = torch.nan
    assert attend_banded(q, k, v, width=5, index=rows(60))[:, :, 10:].isfinite().all()
    step = attend_banded(q[:, :, :1], k, v, width=5, index=torch.tensor([[59]]))
    assert step.isfinite().all()
    index = torch.tensor([[58, 59], [40, 41]])
    chunk = attend_banded(
        q[:, :, :2], k, v, width=5, index=index, mask=cache_mask(index, stored=60)
    )
    assert chunk.isfinite().all()


def test_one_strided_step_touches_the_window_and_the_multiples_alone():
    q, k, v = (x.detach() for x in heads(4, 2, 1, 60))
    index = torch.tensor([[59]])
    unread = ~band(index, rows(60), width=5, stride=7)[0, 0, 0]
    k[:, :, unread] = v[:, :, unread] = torch.nan
    assert banded.attend_banded(q, k, v, width=5, stride=7, index=index).isfinite().all()
