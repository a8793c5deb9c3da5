"""The recipes of GLM-4.5's agents: what the report says of them, in each size that has them."""

import pytest

from etude.recipe.load import load, parents
from etude.recipe.stages import Eval, Rl, Unify
from tests.recipe.whole import check_planned, stages

OWN = ["glm45_agents_quick", "glm45_agents_tiny"]
LARGE = ["glm45_small", "glm45_paper", "glm45_air_paper"]


def environments(stage):
    return {one.name: one for one in stage.environments}


@pytest.mark.parametrize("name", OWN + LARGE)
def test_every_size_can_be_planned(name):
    check_planned(load(name))


@pytest.mark.parametrize("name", OWN + LARGE)
def test_agents_search_and_use_a_real_servers_tools_without_the_groups_deviation(name):
    """Section 3.3: the group's mean is the baseline, and a malformed call costs the attempt."""
    found = stages(name)
    for stage in (found["rl_agent"], found["rl_agent_hard"]):
        assert {"search", "mcp:desk"} <= set(environments(stage))
        assert stage.objective.std is False and stage.format_penalty
    assert found["sft_agent"].data.agentic > 0, "section 3.1: the four steps"


@pytest.mark.parametrize("name", OWN + LARGE)
def test_the_rl_models_answers_replace_the_cold_start_before_rl_gets_harder(name):
    """Section 3.3, iterative distillation."""
    found = stages(name)
    again, cold = found["sft_agent_again"], found["sft_agent"]
    assert isinstance(again, Unify) and parents(again)[0] == parents(cold)[0], (
        "the cold start's base"
    )
    (teacher,) = again.samples_of
    assert teacher.stage == "rl_agent" and {"search", "mcp:desk"} <= set(teacher.tasks)
    easy, hard = (environments(found[stage]) for stage in ("rl_agent", "rl_agent_hard"))
    for task in ("search", "mcp:desk"):
        mean = [
            sum(level * share for level, share in one[task].levels.items())
            / sum(one[task].levels.values())
            for one in (easy, hard)
        ]
        assert mean[1] > mean[0], task
        # only what the expert is not asked is still demonstrated
        shown = again.data.tasks.get(task)
        assert shown is None or not set(shown.levels) & set(teacher.tasks[task].levels)


@pytest.mark.parametrize("name", OWN + LARGE)
def test_a_question_that_is_trained_can_be_answered_in_its_turns(name):
    """A search of level h takes h + 3 turns."""
    for stage in load(name).stages:
        if isinstance(stage, Rl):
            for one in stage.environments:
                if one.name == "search":
                    assert one.turns >= max(one.levels) + 3, stage.name


@pytest.mark.parametrize("name", OWN + LARGE)
def test_code_is_judged_by_unit_tests_and_averaged_over_tokens(name):
    """Section 3.2: the token-weighted mean."""
    code = stages(name)["rl_code"]
    assert set(environments(code)) == {"unit"} and code.objective.aggregate == "token"


@pytest.mark.parametrize("name", OWN + LARGE)
def test_general_rl_has_constraints_one_call_and_a_user_and_pathology_is_last(name):
    """Section 3.4."""
    found = stages(name)
    general = environments(found["rl_general"])
    assert {3, 4} <= set(general["instruct"].levels)
    assert general["mcp:desk"].reward == "step" and general["user:desk"].turns > 1
    last = [stage for stage in load(name).stages if isinstance(stage, Rl)][-1]
    assert last.name == "rl_pathology" and set(environments(last)) == {"pathology"}


@pytest.mark.parametrize("name", [*OWN, "glm45_small"])
def test_accuracy_is_asked_for_one_two_four_and_eight_turns(name):
    asked = [
        s.probes["search"]
        for s in load(name).stages
        if isinstance(s, Eval) and s.probes and "search" in s.probes
    ]
    assert any(probe.turns == (1, 2, 4, 8) for probe in asked)


def test_the_tiny_recipe_has_controls_of_its_own_and_enough_items():
    found = stages("glm45_agents_tiny")
    assert parents(found["sft_more"])[0] == parents(found["rl_agent"])[0] == "sft_agent"
    moderate, hard = found["rl_agent_moderate"], found["rl_agent_hard"]
    assert (moderate.steps, moderate.rollout) == (hard.steps, hard.rollout)
    assert moderate.environments == found["rl_agent"].environments
    assert all(s.items >= 500 for s in found.values() if isinstance(s, Eval))
