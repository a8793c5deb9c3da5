"""Schedules at the marks of the worked example, and where their pieces meet."""

import math

import pytest

from etude.optim import schedule
from etude.recipe.parts import Balance, Batch, Mtp, Schedule

WSD = Schedule(shape="wsd", warmup=10, final=0.1, decay=0.2)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(0, 0.1), (9, 1), (10, 1), (79, 1), (80, 1), (90, 0.55), (100, 0.1), (120, 0.1)],
)
def test_warm_up_stable_decay(seen, expected):
    assert schedule.factor(WSD, seen, 100) == pytest.approx(expected)


@pytest.mark.parametrize(("seen", "expected"), [(80, 1), (85, 0.55), (90, 0.363604), (100, 0.1)])
def test_decay_by_one_minus_the_root(seen, expected):
    spec = Schedule(shape="wsd", warmup=10, final=0.1, decay=0.2, decay_shape="sqrt")
    assert schedule.factor(spec, seen, 100) == pytest.approx(expected, abs=1e-6)


def test_decay_by_a_cosine_is_half_way_down_at_half_time():
    spec = Schedule(shape="wsd", final=0.1, decay=0.2, decay_shape="cosine")
    assert schedule.factor(spec, 90, 100) == pytest.approx(0.55)


@pytest.mark.parametrize(("seen", "expected"), [(0, 0.1), (9, 1), (10, 1), (60, 0.55), (110, 0.1)])
def test_cosine_after_warm_up(seen, expected):
    spec = Schedule(shape="cosine", warmup=10, final=0.1)
    assert schedule.factor(spec, seen, 110) == pytest.approx(expected)


def test_one_cosine_spans_several_stages():
    whole = Schedule(shape="cosine", total=110, warmup=10)
    later = Schedule(shape="cosine", begin=40, total=110, warmup=10)
    for seen in range(0, 60, 7):
        assert schedule.factor(later, seen, 70) == schedule.factor(whole, 40 + seen, 110)


def test_the_first_step_of_a_warm_up_already_learns_and_constant_stays():
    assert schedule.factor(Schedule(warmup=4000), 0, 10_000, batch=1000) == 0.25
    assert schedule.factor(Schedule(shape="constant"), 9_999, 10_000) == 1.0


@pytest.mark.parametrize(
    ("seen", "expected"), [(0, 32_000), (10**9, 824_000), (4 * 10**9, 3_200_000)]
)
def test_the_batch_grows_linearly_in_tokens(seen, expected):
    ramp = Batch(rows=3_200_000, ramp_from=32_000, ramp_tokens=4 * 10**9)
    assert schedule.rows(ramp, seen) == expected


def test_every_rank_gets_the_same_number_of_rows_and_at_least_one():
    ramp = Batch(rows=10, ramp_from=1, ramp_tokens=90)
    assert [schedule.rows(ramp, t) for t in (0, 4, 16, 45, 90, 1000)] == [1, 1, 3, 6, 10, 10]
    assert [schedule.rows(ramp, t, ranks=4) for t in (0, 45, 90)] == [4, 4, 8]


def test_weights_change_at_their_mark():
    mtp, balance = Mtp(after=100), Balance(bias_until=100)
    assert [schedule.mtp_weight(mtp, t) for t in (0, 99, 100)] == [0.3, 0.3, 0.1]
    assert [schedule.bias_rate(balance, t) for t in (0, 99, 100)] == [1e-3, 1e-3, 0.0]
    assert schedule.mtp_weight(Mtp(), 10**9) == 0.3 and schedule.bias_rate(Balance(), 10**9) == 1e-3


def test_the_fast_decay_of_minimax_text_01_halves_the_rate_in_equal_steps():
    """1.3e-4 to 3e-5 over 1T tokens: halfway it is at their geometric mean, 6.245e-5."""
    spec = Schedule(shape="wsd", decay=1.0, decay_shape="exponential", final=3e-5 / 1.3e-4)
    at = [1.3e-4 * schedule.factor(spec, seen, 10**12) for seen in (0, 5 * 10**11, 10**12)]
    assert at == pytest.approx([1.3e-4, math.sqrt(1.3e-4 * 3e-5), 3e-5])


def test_the_batch_of_minimax_text_01_doubles_at_its_marks():
    """Rows of 8,192 tokens: 16M is 1,953 of them, and 15,624 are 128M."""
    spec = Batch(rows=15_624, doubles_at=(69 * 10**9, 790 * 10**9, 4_700 * 10**9))
    marks = (0, 69 * 10**9 - 1, 69 * 10**9, 790 * 10**9, 4_700 * 10**9, 7_200 * 10**9)
    assert [schedule.rows(spec, mark) for mark in marks] == [1953, 1953, 3906, 7812, 15_624, 15_624]


@pytest.mark.parametrize(
    "wrong",
    [{"doubles_at": (5, 5)}, {"doubles_at": (5,), "rows": 3}, {"doubles_at": (5,), "ramp_from": 1}],
)
def test_a_batch_that_cannot_double_so_is_refused(wrong):
    with pytest.raises(ValueError, match="doubles_at|times a whole"):
        Batch(**({"rows": 4, "ramp_tokens": 10} | wrong))
