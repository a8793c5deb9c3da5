"""Difficulty classes and the temperature rule, by hand."""

import pytest

from etude.recipe.parts import Difficulty, Environment, Temperature
from etude.recipe.stages import Rl
from etude.rl.curriculum import by_environment, choose
from etude.rl.problems import draw
from etude.rl.temperature import choose as choose_temperature
from etude.rl.temperature import slope, stable

FEW = [0, 0, 0, 1, 7, 8, 8]  # successes of 8
LATE = [True, False, True, False, False, False, False]


def test_hard_is_unsolved_at_first_and_solved_later():
    places, counts = choose(FEW, LATE, 8, "hard", least=1)
    assert places == [0, 2]
    assert (counts["pool/never"], counts["pool/hard"], counts["pool/added"]) == (1, 2, 0)


def test_moderate_is_solved_sometimes():
    places, counts = choose(FEW, [False] * 7, 8, "moderate", least=1)
    assert places == [3, 4] and counts["pool/easy"] == 2


@pytest.mark.parametrize(
    ("least", "wanted"), [(3, [0, 2, 3]), (5, [0, 2, 3, 4, 5]), (7, [0, 1, 2, 3, 4, 5, 6])]
)
def test_too_few_are_filled_with_the_next_easier_hardest_first(least, wanted):
    places, counts = choose(FEW, LATE, 8, "hard", least=least)
    assert places == wanted
    assert counts["pool/added"] == least - 2


def test_a_family_that_is_solved_already_keeps_its_part_of_the_problems():
    environments = (Environment(name="rev"), Environment(name="sort"))
    spec = Rl(environments=environments, steps=1, difficulty=Difficulty(keep="hard", least=4))
    pool = draw(environments, 20, seed=0)
    few = [0 if problem.environment.name == "rev" else 8 for problem in pool]
    places, counts = by_environment(pool, few, [right == 0 for right in few], spec)
    kept = [pool[place].environment.name for place in places]
    assert kept.count("sort") == 2 == counts["pool/added"]
    assert kept.count("rev") == few.count(0)


def test_the_slope_is_that_of_least_squares():
    assert slope([0.0, 0.1, 0.2, 0.3]) == pytest.approx(0.1)
    assert slope([0.0, 1.0, 0.0]) == pytest.approx(0.0)


def test_a_reward_is_stable_once_its_last_window_no_longer_rises():
    rule = Temperature(window=4, slope=0.002)
    assert not stable([0.5, 0.5, 0.5], rule)
    assert not stable([0.1, 0.2, 0.3, 0.4], rule)
    assert stable([0.1, 0.2, 0.4, 0.4, 0.4, 0.401], rule)


@pytest.mark.parametrize(
    ("scores", "current", "wanted"),
    [
        ({0.8: 0.60, 1.0: 0.61, 1.2: 0.605, 1.4: 0.4}, 1.0, 1.2),
        ({0.8: 0.60, 1.0: 0.59, 1.2: 0.58}, 0.8, 1.0),  # exactly 0.01 less is allowed
        ({0.8: 0.70, 1.0: 0.50, 1.2: 0.40}, 1.0, 1.0),  # never lowered
    ],
)
def test_the_largest_temperature_within_one_percent_of_the_best_is_taken(scores, current, wanted):
    assert choose_temperature(scores, current, Temperature()) == wanted
