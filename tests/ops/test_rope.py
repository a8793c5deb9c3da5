"""Rotation of a part of each head in either layout of pairs, and the angles that YaRN slows."""

import math

import pytest
import torch

from etude.arch import Rope, YaRN
from etude.errors import EtudeError
from etude.ops.rope import frequencies, rotate, rotate_reference, tables


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize(("width", "theta"), [(16, 1e4), (8, 1e6), (2, 10.0)])
def test_the_twin_turns_pair_by_pair(width, theta, pairs):
    x, pos = torch.randn(2, 5, 3, 16), torch.randint(0, 1000, (2, 5))
    cos, sin = tables(pos, Rope(theta, width / 16, pairs), 16)
    expected = rotate_reference(x, pos, width, theta, pairs=pairs)
    # measured 2e-4 at position 1000: float32 angles differ by their last bit; a wrong pair moves 1
    torch.testing.assert_close(rotate(x, cos, sin, width, pairs=pairs), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize("width", [16, 8])
def test_the_gradient_is_that_of_the_formula(width, pairs):
    x, pos, probe = torch.randn(2, 5, 3, 16), torch.arange(10).view(2, 5), torch.randn(2, 5, 3, 16)
    x.requires_grad_()
    fast = rotate(x, *tables(pos, Rope(1e4, width / 16, pairs), 16), width, pairs=pairs)
    slow = rotate_reference(x, pos, width, 1e4, pairs=pairs)
    (found,), (expected,) = (torch.autograd.grad(y, x, probe) for y in (fast, slow))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_dimension_i_turns_with_i_plus_half_the_width():
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1.0
    cos, sin = tables(torch.tensor([[1]]), Rope(100.0, 0.5), 8)
    y = rotate(x, cos, sin, 4)[0, 0, 0]
    assert y.tolist() == pytest.approx([math.cos(1), 0, math.sin(1), 0, 0, 0, 0, 0])


def test_the_exponent_is_divided_by_the_turning_width():
    cos, _ = tables(torch.tensor([[1]]), Rope(100.0, 0.5), 8)
    assert cos.flatten().tolist() == pytest.approx(
        [math.cos(1), math.cos(0.1), math.cos(1), math.cos(0.1), 1, 1, 1, 1]
    )


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(i, j):
        turned = [
            rotate(x, *tables(torch.tensor([[p]]), Rope(1e4, 0.5), 16), 8)
            for x, p in ((q, i), (k, j))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(7, 3), score(104, 100), atol=1e-4, rtol=0)
    assert (score(7, 3) - score(7, 4)).abs() > 1e-3


def test_angles_are_float32_under_a_narrow_dtype():
    """At bf16 position 257 would equal 256."""
    cos, _ = tables(torch.tensor([[256, 257]]), Rope(), 4, dtype=torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    assert cos[0, 0, 0, 0] != cos[0, 1, 0, 0]


def test_neighbours_turn_like_halves_of_the_reordered_head():
    """Evens before odds: what a mixer may do to its weights instead of to every token."""
    x, pos = torch.randn(1, 6, 2, 8), torch.arange(6)[None]
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    near, half = (tables(pos, Rope(50.0, 1.0, pairs), 8) for pairs in ("interleaved", "half"))
    expected = rotate(x, *near, 8, pairs="interleaved")[..., order]
    torch.testing.assert_close(rotate(x[..., order], *half, 8), expected, atol=1e-6, rtol=0)


RELEASED = YaRN(factor=32.0, original_length=4096, beta_fast=1.0, mscale_all_dim=1.0)
CASES = [
    (64, 5e4, RELEASED),
    (64, 5e4, YaRN(factor=64.0, original_length=4096, mscale_all_dim=1.0)),
    (64, 1e4, YaRN(factor=40.0, original_length=4096, mscale=0.707, mscale_all_dim=0.707)),
    (8, 500.0, YaRN(factor=8.0, original_length=16, beta_fast=2.0, beta_slow=0.5)),
    (128, 1e6, YaRN(factor=1.0, original_length=512)),
]


def slowed(width, theta, yarn):
    """Each pair's angle per position, in Python numbers, as the report's appendix has it."""

    def corner(turns):
        ratio = yarn.original_length / (2 * math.pi * turns)
        return width * math.log(ratio) / (2 * math.log(theta))

    low = max(0, math.floor(corner(yarn.beta_fast)))
    high = min(width - 1, math.ceil(corner(yarn.beta_slow)))
    high = high + 0.001 if high == low else high
    for i in range(width // 2):
        plain = theta ** (-2 * i / width)
        ramp = min(1, max(0, (i - low) / (high - low)))
        yield plain / yarn.factor * ramp + plain * (1 - ramp)


@pytest.mark.parametrize(("width", "theta", "yarn"), CASES)
def test_yarn_slows_the_pairs_that_do_not_turn_often_within_the_trained_length(width, theta, yarn):
    found = frequencies(Rope(theta, scaling=yarn), width, torch.device("cpu"))
    # float32: measured 1e-6 of each; the ramp one pair further moves 3e-2
    assert found.tolist() == pytest.approx(list(slowed(width, theta, yarn)), rel=1e-5)


def test_fast_pairs_keep_their_angle_and_slow_ones_are_divided_by_the_factor():
    yarn = YaRN(factor=64.0, original_length=4096)
    plain = frequencies(Rope(5e4), 64, torch.device("cpu"))
    ratio = plain / frequencies(Rope(5e4, scaling=yarn), 64, torch.device("cpu"))
    turns = 4096 * plain / (2 * math.pi)  # within the trained length
    # the corners are rounded outwards to whole pairs
    assert torch.all(ratio[turns > 32 * 1.41] == 1)
    torch.testing.assert_close(ratio[turns < 0.7], torch.full_like(ratio[turns < 0.7], 64.0))
    assert torch.all((ratio >= 1) & (ratio <= 64.0001))
    between = ratio[(turns < 31) & (turns > 2)]
    assert len(between) and torch.all((between > 1) & (between < 64))


def test_the_tables_of_yarn_carry_the_ratio_of_its_two_amplitudes():
    def top(**how):
        yarn = YaRN(factor=8.0, original_length=16, **how)
        cos, _ = tables(torch.tensor([[0]]), Rope(scaling=yarn), 8)  # cosine of angle 0
        return cos.flatten()[0].item()

    grown = 0.1 * math.log(8)
    assert top() == pytest.approx(1 + grown)
    assert top(mscale=0.6) == pytest.approx(1 + 0.6 * grown)
    assert top(mscale=0.6, mscale_all_dim=1.4) == pytest.approx(
        (1 + 0.6 * grown) / (1 + 1.4 * grown)
    )
    assert top(mscale=1.0, mscale_all_dim=1.0) == 1.0


def test_yarn_without_its_trained_length_is_one_clear_line():
    block = {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    with pytest.raises(EtudeError, match="original_max_position_embeddings") as caught:
        Rope.read(block)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [{"attention_factor": 1.3}, {"truncate": False}])
def test_a_field_of_yarn_that_would_change_the_numbers_unseen_is_refused(more):
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    with pytest.raises(EtudeError, match=next(iter(more))):
        Rope.read({"rope_theta": 1e4, "rope_scaling": scaling | more})
