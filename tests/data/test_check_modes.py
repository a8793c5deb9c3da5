"""What a recipe asks of a system that cannot talk, or cannot switch its thinking, is told first."""

import pytest

from etude.data.check import check_names
from etude.errors import EtudeError
from etude.recipe.load import load

QUICK = "glm45_quick"
ASKS = [
    ("kimi_k2", "data.thinking: thinking: on, and kimi_k2 never thinks"),
    ("minimax_m1", r"rl_moderate\.environments: thinking: off, and minimax_m1 always thinks"),
    ("gpt3", "chat: this system has no chat format"),
]


@pytest.mark.parametrize(("family", "words"), ASKS, ids=[family for family, _ in ASKS])
def test_a_recipe_is_told_before_it_runs(family, words):
    recipe = load(QUICK, [f"model.family={family}", "model.size=tiny"])
    with pytest.raises(EtudeError, match=words):
        check_names(recipe, ready=False)


@pytest.mark.parametrize("family", ["glm45", "nemotron3"])
def test_systems_that_switch_run_the_same_stages(family):
    check_names(load(QUICK, [f"model.family={family}", "model.size=tiny"]), ready=False)
