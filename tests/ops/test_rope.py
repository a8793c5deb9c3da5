"""Rotation of a part of each head, in half-split pairs."""

import math

import pytest
import torch

from etude.ops.rope import rotate, rotate_reference, tables


@pytest.mark.parametrize(("width", "theta"), [(16, 1e4), (8, 1e6), (2, 10.0)])
def test_the_twin_turns_pair_by_pair(width, theta):
    x, pos = torch.randn(2, 5, 3, 16), torch.randint(0, 1000, (2, 5))
    cos, sin = tables(pos, width, theta=theta, head_dim=16)
    expected = rotate_reference(x, pos, width, theta)
    # measured 2e-4 at position 1000: float32 angles differ by their last bit; a wrong pair moves 1
    torch.testing.assert_close(rotate(x, cos, sin, width), expected, atol=1e-3, rtol=0)


def test_dimension_i_turns_with_i_plus_half_the_width():
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1.0
    cos, sin = tables(torch.tensor([[1]]), 4, theta=100.0, head_dim=8)
    y = rotate(x, cos, sin, 4)[0, 0, 0]
    assert y.tolist() == pytest.approx([math.cos(1), 0, math.sin(1), 0, 0, 0, 0, 0])


def test_the_exponent_is_divided_by_the_turning_width():
    cos, _ = tables(torch.tensor([[1]]), 4, theta=100.0, head_dim=8)
    assert cos.flatten().tolist() == pytest.approx(
        [math.cos(1), math.cos(0.1), math.cos(1), math.cos(0.1), 1, 1, 1, 1]
    )


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i, j):
        turned = [
            rotate(x, *tables(torch.tensor([[p]]), 8, theta=1e4, head_dim=16), 8)
            for x, p in ((q, i), (k, j))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), atol=1e-4, rtol=0)
    assert (score(7, 3) - score(7, 4)).abs() > 1e-3


def test_angles_are_float32_under_a_narrow_dtype():
    """At bf16 position 257 would equal 256."""
    cos, _ = tables(torch.tensor([[256, 257]]), 4, theta=1e4, head_dim=4, dtype=torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert cos[0, 0, 0, 0] != cos[0, 1, 0, 0]
