"""Which stages are compared follows from the recipe's graph."""

from etude.evals.gains import pairs
from etude.recipe.load import load

MEASURED = ("mid_agent", "sft_reasoning", "sft_more", "rl_moderate", "rl_moderate_only", "rl_hard")


def test_rl_that_follows_rl_is_also_held_against_the_fine_tuning_before_all_of_it():
    found = [(p.after, p.before) for p in pairs(load("glm45_tiny"), MEASURED)]
    before = [b for a, b in found if a == "rl_hard"]
    assert before == ["rl_moderate", "rl_moderate_only", "sft_reasoning", "sft_more"]
    assert [b for a, b in found if a == "rl_moderate"] == ["sft_reasoning", "sft_more"]


def test_a_pair_compares_the_families_that_the_stage_was_trained_on():
    by = {(p.after, p.before): p for p in pairs(load("glm45_tiny"), MEASURED)}
    assert by["rl_hard", "sft_more"].tasks == {"rev", "sort"}
    assert by["sft_reasoning", "mid_agent"].tasks is None
