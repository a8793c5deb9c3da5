"""The law through a ladder of sizes, against points that are made from one."""

import math
import random

import pytest

from etude.evals.ladder import Rung, power_law, render, rung, rungs, summary, told, with_floor


def ladder(law, *, noise=0.0, count=5, seed=0):
    rng = random.Random(seed)
    computes = [10.0 ** (11 + 0.4 * n) for n in range(count)]
    return [
        Rung(f"r{n}", 1000, 1, c, law(c) * math.exp(rng.gauss(0, noise)))
        for n, c in enumerate(computes)
    ]


def test_points_on_a_power_law_give_its_exponent_and_no_doubt():
    law = power_law(ladder(lambda c: 30 * c**-0.07))
    assert law.exponent == pytest.approx(0.07)
    assert law.scale == pytest.approx(30)
    assert (law.low, law.high) == pytest.approx((0.07, 0.07))
    assert law.fit == pytest.approx(1)


def test_the_published_law_gives_the_loss_it_is_read_from():
    """L = 2.57 C^-0.048 with C in PF-days: 175B at 3,640 of them has 1.73 nats."""
    days = [2.6, 7.42, 15.8, 27.5, 55.2, 139, 268, 3640]
    points = [Rung(str(n), 1, 1, c, 2.57 * c**-0.048) for n, c in enumerate(days)]
    law = power_law(points)
    assert law.exponent == pytest.approx(0.048)
    assert law.loss(3640) == pytest.approx(1.734, abs=1e-3)


def test_with_noise_the_interval_holds_the_truth_in_about_95_of_100_ladders():
    hits = 0
    for seed in range(200):
        law = power_law(ladder(lambda c: 30 * c**-0.07, noise=0.01, seed=seed))
        hits += law.low <= 0.07 <= law.high
    assert 180 <= hits <= 199  # 190 expected, standard deviation 3


def test_the_interval_is_students_by_hand():
    """Three points, one degree of freedom: half = 12.706 sqrt(rest / across)."""
    points = [Rung("", 1, 1, math.e**x, math.e**y) for x, y in ((0, 2.0), (1, 1.5), (2, 1.3))]
    law = power_law(points)
    # slope -0.35, residuals 0.05, -0.1, 0.05
    half = 12.7062 * math.sqrt(0.015 / 2)
    assert law.exponent == pytest.approx(0.35)
    assert law.high - law.exponent == pytest.approx(half, rel=1e-4)


def test_a_floor_is_found_where_there_is_one():
    law = with_floor(ladder(lambda c: 2.0 + 400 * c**-0.25, count=7))
    assert law.floor == pytest.approx(2.0, abs=0.03)
    assert law.exponent == pytest.approx(0.25, abs=0.02)
    assert law.low <= law.exponent <= law.high


def test_two_points_make_no_law_and_four_are_needed_for_a_floor():
    points = ladder(lambda c: 30 * c**-0.07)
    assert power_law(points[:2]) is None
    assert power_law(points[:3]) is not None
    assert with_floor(points[:3]) is None
    same = [Rung("", 1, 1, 1e12, loss) for loss in (3.0, 3.1, 3.2)]
    assert power_law(same) is None


ROWS = [
    {"metric": "bpb", "value": 2.0, "bytes": 300, "tokens": 100},
    {"metric": "bpb", "value": 4.0, "bytes": 100, "tokens": 100},
    {"metric": "clean bpb", "value": 9.0, "bytes": 100, "tokens": 100},
    {"metric": "exact", "value": 0.5},
]


def test_the_loss_of_a_rung_is_nats_per_token_over_all_documents():
    found = rung(ROWS, 10, 20, 1200.0)
    assert found["loss"] == pytest.approx(5 * math.log(2))  # (600 + 400) bits of 200 tokens


def test_a_ladder_is_told_from_what_was_measured_the_least_compute_first():
    results = [
        {"stage": f"r{n}", "ladder": {"parameters": 1, "tokens": 1, "compute": c, "loss": c**-0.1}}
        for n, c in enumerate((1e13, 1e12, 1e11))
    ]
    results.append({"stage": "other"})
    assert [r.stage for r in rungs(results)] == ["r2", "r1", "r0"]
    assert "C^-0.100" in told(rungs(results))[-1]
    assert summary([[{"stage": "other"}]]) is None
    assert "over 2 seeds: 0.100" in render(summary([results, results]))
