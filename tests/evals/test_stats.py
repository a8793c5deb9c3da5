"""Intervals and pass@k against closed forms, and against repeated experiments."""

import itertools
import math
import random

import pytest

from etude.evals.stats import (
    T,
    interquartile_mean,
    iqm_interval,
    over_items,
    pass_at_k,
    t_interval,
    wilson,
)


def test_an_interval_over_seeds_is_students():
    """Values 1, 2, 3: mean 2, deviation 1, t with 2 degrees of freedom 4.3027."""
    found = t_interval([1.0, 2.0, 3.0])
    assert found.value == 2.0 and found.n == 3
    assert found.high - found.value == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_one_seed_has_a_mean_and_no_interval():
    found = t_interval([0.5])
    assert found.value == 0.5 and math.isnan(found.low)


def test_students_points_meet_their_closed_forms():
    """One degree of freedom: tan(pi (p - 1/2)); two: (2p - 1) / sqrt(2 p (1 - p)), p = 0.975."""
    assert T[0] == pytest.approx(math.tan(math.pi * 0.475), abs=1e-4)
    assert T[1] == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025), abs=1e-4)
    assert list(T) == sorted(T, reverse=True) and len(T) == 30 and T[-1] > 1.96


def test_wilson_is_honest_at_the_ends():
    """0 of 10: upper bound z^2 / (n + z^2) = 0.2775."""
    assert wilson(0, 10).low == 0 and wilson(0, 10).high == pytest.approx(0.27754, abs=1e-4)
    assert wilson(10, 10).high == pytest.approx(1) and wilson(10, 10).high <= 1
    assert wilson(10, 10).low == pytest.approx(0.72246, abs=1e-4)
    assert math.isnan(wilson(0, 0).value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_wilson_covers_the_truth_about_95_times_in_a_hundred(share):
    draws = random.Random(0)
    hits = 0
    for _ in range(1000):
        found = wilson(sum(draws.random() < share for _ in range(100)), 100)
        hits += found.low <= share <= found.high
    assert 0.92 <= hits / 1000 <= 0.98


def test_right_or_wrong_answers_take_wilsons_interval_and_shares_a_normal_one():
    assert over_items([1.0, 0.0, 1.0]) == wilson(2, 3)
    found = over_items([0.25, 0.75])
    assert found.value == 0.5 and found.high == pytest.approx(0.5 + 1.959964 * 0.25, rel=1e-5)


@pytest.mark.parametrize(("right", "n", "k"), [(1, 4, 2), (3, 8, 4), (0, 5, 5), (5, 5, 1)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_right_one(right, n, k):
    samples = [True] * right + [False] * (n - right)
    choices = list(itertools.combinations(samples, k))
    assert pass_at_k(right, n, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_refuses_more_tries_than_samples():
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples, got 4"):
        pass_at_k(1, 4, 5)


def test_the_interquartile_mean_is_that_of_the_middle_half():
    """Of eight the middle four; of six one and a half fall at either end; of two the plain mean."""
    assert interquartile_mean([9, 1, 3, 2, 100, 4, -50, 8]) == pytest.approx((2 + 3 + 4 + 8) / 4)
    assert interquartile_mean([0, 1, 2, 4, 8, 99]) == pytest.approx((1 / 2 + 2 + 4 + 8 / 2) / 3)
    assert interquartile_mean([1, 3]) == 2 and math.isnan(interquartile_mean([]))


def test_a_bootstrap_draws_runs_again_within_each_task():
    """Tasks far apart do not widen the interval, since each keeps its share; runs far apart do."""
    equal = iqm_interval([[0.2] * 3, [0.8] * 3])
    assert (equal.value, equal.low, equal.high) == pytest.approx((0.5, 0.5, 0.5))
    apart = iqm_interval([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]])
    assert apart.low < apart.value < apart.high and apart.n == 6
    assert apart == iqm_interval([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]])


def test_a_bootstrap_of_one_run_has_no_interval():
    found = iqm_interval([[0.2], [0.4]])
    assert found.value == pytest.approx(0.3) and math.isnan(found.low) and math.isnan(found.high)


def test_the_bootstrap_covers_the_truth_about_95_times_in_a_hundred_where_runs_are_many():
    """Uniform values, whose interquartile mean is a half; 30 runs: measured 94 of 100."""
    draws, hits = random.Random(0), 0
    for _ in range(100):
        found = iqm_interval([[draws.random() for _ in range(30)]], draws=200)
        hits += found.low <= 0.5 <= found.high
    assert 88 <= hits <= 99
