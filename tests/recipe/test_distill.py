"""The recipes that learn from another model, and from comparisons."""

import pytest

from etude.arch import count
from etude.models.describe import by_stage
from etude.recipe.load import load
from tests.recipe.whole import check_planned, stages

SIZES = ("distill_quick", "distill_tiny")


@pytest.mark.parametrize("name", [*SIZES, "preference_quick"])
def test_it_can_be_planned(name):
    check_planned(load(name))


@pytest.mark.parametrize("name", SIZES)
def test_answers_come_first_then_the_students_own_then_rewards(name):
    recipe = stages(name)
    answers, own, last = (recipe[n] for n in ("from_answers", "from_own", "gspo"))
    assert (answers.form, answers.own_share) == ("text", 0)
    assert (own.form, own.own_share, own.divergence) == ("logits", 1, "reverse")
    assert own.start == "from_answers"
    assert last.objective.kind == "gspo"
    order = [n for n in recipe if n in ("from_own", "gspo")]
    assert order == ["from_own", "gspo"] and last.start in (None, "from_own")
    assert 0 < answers.thinking < 1 and 0 < own.thinking < 1
    assert {one.thinking for one in last.environments} == {True, False}


@pytest.mark.parametrize("name", SIZES)
def test_controls_start_from_the_same_weights_and_sample_as_much(name):
    recipe = stages(name)
    own = recipe["from_own"]
    answers = own.steps * own.batch.rows
    for other in ("rl_alone", "from_sampled_tokens"):
        rollout = recipe[other].rollout
        assert recipe[other].start == own.start
        assert recipe[other].steps * rollout.prompts * rollout.per_prompt == answers
    assert recipe["from_sampled_tokens"].distill.stages == ("teacher_rl",)
    assert recipe["sft_more"].start == recipe["from_answers"].start == "sft"


@pytest.mark.parametrize("name", SIZES)
def test_the_teacher_is_larger_and_is_measured_beside_its_student(name):
    recipe = load(name)
    plans = by_stage(recipe)
    teacher, student = (count(plans[n]).trunk for n in ("teacher_rl", "gspo"))
    assert teacher > 4 * student
    measured = recipe.stages[-1]
    assert {"teacher_rl", "sft_more", "from_answers", "from_own", "gspo"} <= set(measured.of)
    assert all(probe.thinking == (True, False) for probe in measured.probes.values())


def test_tiny_asks_500_held_out_questions_of_each_kind():
    assert stages("distill_tiny")["eval"].items >= 500


def test_preferences_and_the_reward_model_learn_from_the_same_pairs():
    recipe = stages("preference_quick")
    assert recipe["preference"].pairs == recipe["reward_model"].pairs
    (term,) = recipe["rl_by_model"].rewards
    assert (term.kind, term.by) == ("reward_model", "reward_model")
    starts = {recipe[n].start for n in ("preference", "reward_model", "rl_by_model", "sft_more")}
    assert starts == {"sft"}
