"""The largest score of each head against every score written out."""

import math

import pytest
import torch

from etude.ops import attention
from etude.ops.attention import document_mask, peak_scores


def brute(q, k, read, scale):
    repeat = q.shape[1] // k.shape[1]
    score = q @ k.repeat_interleave(repeat, 1).transpose(-1, -2) * scale
    return score.masked_fill(~read, -math.inf).amax((0, 2, 3))


@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_blocks_of_queries_find_what_all_scores_hold(monkeypatch, heads, groups, block):
    monkeypatch.setattr(attention, "PEAK_BLOCK", block)
    q, k = torch.randn(2, heads, 7, 5), torch.randn(2, groups, 7, 5)
    tril = torch.ones(7, 7).tril().bool()
    found = peak_scores(q, k, causal=True)
    torch.testing.assert_close(found, brute(q, k, tril, 5**-0.5))
    segments = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 2]])
    mask, valid = document_mask(segments), segments != 0
    found = peak_scores(q, k, mask=mask, valid=valid, scale=0.7)
    torch.testing.assert_close(found, brute(q, k, mask & valid[:, None, :, None], 0.7))


def test_queries_behind_earlier_keys_read_up_to_their_own(monkeypatch):
    monkeypatch.setattr(attention, "PEAK_BLOCK", 2)
    q, k = torch.randn(2, 6, 3, 5), torch.randn(2, 2, 7, 5)
    read = torch.ones(3, 7).tril(4).bool()
    torch.testing.assert_close(peak_scores(q, k, causal=True), brute(q, k, read, 5**-0.5))


def test_a_pair_that_may_not_be_read_and_padding_do_not_count():
    q, k = torch.ones(1, 1, 4, 1), torch.tensor([1.0, 2, 3, 9]).view(1, 1, 4, 1)
    assert peak_scores(q, k, causal=True, scale=1.0) == 9
    valid = torch.tensor([[True, True, True, False]])
    assert peak_scores(q, k, causal=True, valid=valid, scale=1.0) == 3
    mask = torch.eye(4).bool()[None, None]
    assert peak_scores(-q, k, mask=mask, valid=valid, scale=1.0) == -1
    assert peak_scores(q, k, causal=True, valid=~valid.new_ones(1, 4)) == -math.inf


def test_it_carries_no_gradient_and_is_float32_at_least():
    q = torch.randn(1, 1, 3, 2, dtype=torch.bfloat16, requires_grad=True)
    found = peak_scores(q, q, causal=True)
    assert found.dtype == torch.float32 and not found.requires_grad
