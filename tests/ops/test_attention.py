"""Attention: the fused twin against the formula, masks and positions of packed documents."""

import pytest
import torch

from etude.ops.attention import (
    attend,
    attend_reference,
    cache_mask,
    document_mask,
    document_positions,
)

SHAPES = [(8, 2, 7, 7), (4, 4, 5, 5), (6, 1, 1, 9), (8, 2, 1, 9), (4, 2, 3, 9)]


def heads(h, g, t, s):
    return torch.randn(2, h, t, 16), torch.randn(2, g, s, 16), torch.randn(2, g, s, 16)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fused_twin_equals_the_formula_under_a_mask(shape):
    q, k, v = heads(*shape)
    mask = torch.rand(2, 1, shape[2], shape[3]) < 0.6
    mask[..., 0] = True
    # measured 5e-7; a wrong head group or scale moves 1e-1
    torch.testing.assert_close(
        attend(q, k, v, mask=mask), attend_reference(q, k, v, mask=mask), atol=5e-6, rtol=0
    )


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_causal_needs_no_mask(shape):
    q, k, v = heads(*shape)
    mask = torch.ones(2, 1, shape[2], shape[3], dtype=torch.bool).tril()
    fast = attend(q, k, v, causal=True)
    torch.testing.assert_close(fast, attend_reference(q, k, v, causal=True), atol=5e-6, rtol=0)
    torch.testing.assert_close(fast, attend_reference(q, k, v, mask=mask), atol=5e-6, rtol=0)


def test_one_query_reads_all_keys_of_its_group():
    q, k, v = heads(8, 2, 1, 9)
    torch.testing.assert_close(attend(q, k, v), attend_reference(q, k, v), atol=5e-6, rtol=0)


def test_gradients_of_the_twins_agree():
    tensors = [t.requires_grad_() for t in heads(8, 2, 7, 7)]
    fast = torch.autograd.grad(attend(*tensors, causal=True).square().sum(), tensors)
    slow = torch.autograd.grad(attend_reference(*tensors, causal=True).square().sum(), tensors)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_a_document_reads_itself_and_what_came_before():
    mask = document_mask(torch.tensor([[1, 1, 2, 0]]))[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_positions_start_again_with_each_document():
    segments = torch.tensor([[1, 1, 2, 2, 2, 0], [0, 0, 3, 3, 1, 1]])
    assert document_positions(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 0, 1, 0, 1]]


def test_a_cached_row_reads_up_to_its_own_position():
    mask = cache_mask(torch.tensor([[0], [2]]), 4)
    assert mask[:, 0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("new", "stored"), [(2, 3), (5, 64), (33, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_positions_read_all_before_them_and_their_own_triangle(groups, new, stored, dtype):
    q = torch.randn(2, 6, new, 16, dtype=dtype)
    k, v = (torch.randn(2, groups, stored, 16, dtype=dtype) for _ in range(2))
    expected = attend_reference(q, k, v, causal=True, scale=0.3)
    with torch.no_grad():
        y = attend(q, k, v, causal=True, scale=0.3)
    # the reference's softmax is float32; measured 4e-7
    torch.testing.assert_close(y, expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(attend(q, k, v, causal=True, scale=0.3), expected, atol=5e-6, rtol=0)
    whole = attend(torch.cat((torch.zeros_like(q[:, :, :1]), q), 2), k, v, causal=True, scale=0.3)
    torch.testing.assert_close(whole[:, :, 1:], expected, atol=5e-6, rtol=0)
