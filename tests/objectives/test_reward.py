"""Reward formulas against the worked examples of their reports, by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.objectives import reward


def near(value):
    return pytest.approx(value, abs=1e-6)


def test_overlong_answers_pay_on_a_line_over_the_last_tokens():
    """DAPO, L = 100, c = 20."""
    found = [reward.overlong(n, most=100, cache=20) for n in (0, 80, 90, 100, 5000)]
    assert found == near([0, 0, -0.5, -1, -1])


def test_a_swarm_is_paid_for_launching_and_for_finishing():
    """Weights 0.1 and 0.2; three quarters launched, two of three finished; the outcome is 1."""
    assert 1 + reward.swarm(0.75, 2 / 3, weights=(0.1, 0.2)) == near(1.208333)
    assert reward.swarm(3.0, 0.0, weights=(0.1, 0.2)) == near(0.1)  # more than wanted is not more


def test_only_the_longest_branch_of_each_stage_counts():
    stages = [(1, (4, 7, 2)), (1, ()), (1, (3, 3))]
    assert reward.critical_steps(stages) == 13
    assert sum(main + sum(branches) for main, branches in stages) == 22


def test_toggle_asks_for_brevity_only_where_a_problem_is_solved_well():
    lengths = [10, 20, 30, 40]
    budget = reward.percentile(lengths, 0.5)
    assert budget == near(25)
    right = [True] * 4
    assert reward.toggle([1.0] * 4, right, lengths, least=0.6, budget=budget) == [1, 1, 0, 0]
    hard = [True, False, False, True]  # half right is below 0.6
    rewards = [1.0, 0.0, 0.0, 1.0]
    assert reward.toggle(rewards, hard, lengths, least=0.6, budget=budget) == rewards


def test_relative_length_by_hand():
    # w = 1, 0.5, 0; less their mean
    assert reward.relative_length([10, 20, 30]) == near([0.5, 0, -0.5])
    assert reward.relative_length([7, 7]) == [0, 0]


@given(st.lists(st.integers(0, 500), min_size=1, max_size=9))
def test_relative_length_takes_from_long_answers_what_it_gives_to_short_ones(lengths):
    found = reward.relative_length(lengths)
    assert sum(found) == pytest.approx(0, abs=1e-9)
    ranked = [w for _, w in sorted(zip(lengths, found, strict=True), key=lambda pair: pair[0])]
    assert all(a >= b - 1e-12 for a, b in pairwise(ranked))


def test_the_shortest_answer_has_a_bonus_only_if_it_is_good():
    base, lengths = [1.0, 1.0, 0.0, 0.0, 0.0], [9, 20, 30, 30, 30]
    assert reward.shortest_bonus(base, lengths, quantile=0.8) == [1, 0, 0, 0, 0]
    assert reward.shortest_bonus(base[::-1], lengths, quantile=0.8) == [0] * 5
    assert reward.shortest_bonus([1.0, 1.0], [5, 5], quantile=0.8) == [0, 0]


def test_a_circle_of_comparisons_by_hand():
    """Scores of (1, 2), (2, 3), (3, 1); the second is equal, and its rank says the first leads."""
    verdicts = [(5.0, 2.0, 1.0), (3.0, 3.0, 2.0), (1.0, 4.0, 6.0)]
    # 1: (5 + 4) / 2; 2: (2 + 3 + 1.5) / 2; 3: (3 - 1.5 + 1) / 2
    assert reward.circular(verdicts) == near([4.5, 3.25, 1.25])


def test_a_verdict_is_off_by_its_scores_and_its_rank():
    assert reward.verdict_error((5, 1, 1), (4, 2, 2)) == 3
    assert reward.verdict_error(None, (4, 2, 2)) == 10


def test_repetition_and_foreign_letters_are_shares():
    assert reward.repeated([1, 2, 3, 4, 5, 6], 3) == 0
    assert reward.repeated([1, 2, 1, 2, 1, 2], 2) == near(1 - 2 / 5)
    assert reward.repeated([1, 2], 3) == 0
    known = reward.scripts("How much is it?")
    assert known == {"LATIN"}
    assert reward.foreign("naïve, 42!", known) == 0
    assert reward.foreign("ab привет", known) == near(6 / 8)


def test_what_length_explains_of_a_reward_can_be_taken_off():
    lengths = [10, 20, 30, 40]
    liked = [0.1 * n + extra for n, extra in zip(lengths, (1, 0, 0, 1), strict=True)]
    assert reward.correlation(lengths, liked) > 0.9
    freed = reward.without_length(liked, lengths)
    assert reward.correlation(lengths, freed) == pytest.approx(0, abs=1e-9)
    assert sum(freed) == pytest.approx(sum(liked))
    assert freed[0] - freed[1] == near(1)  # what is not length stays
    assert reward.without_length([1.0, 0.0], [5, 5]) == [1, 0]
    assert reward.correlation([1, 2], [3, 3]) == 0


def test_a_bell_over_pass_rates_leaves_out_what_is_always_solved():
    weights = reward.gaussian({0: 1.0, 1: 0.8, 2: 0.3}, mean=0.8, width=0.2)
    assert 0 not in weights and sum(weights.values()) == near(1)
    assert weights[1] / weights[2] == pytest.approx(2.718281828 ** (0.5 * (0.5 / 0.2) ** 2))
    assert reward.gaussian({0: 1.0, 1: 1.0}, mean=0.2, width=0.1) == near({0: 0.5, 1: 0.5})
    assert reward.gaussian({0: 0.0, 1: 0.4}, mean=0.9, width=1e-3) == {1: 1.0}
