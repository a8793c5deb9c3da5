"""Every shipped recipe is valid, and is what its file name says."""

from pathlib import Path

import pytest

from etude.recipe.load import load

RECIPES = sorted((Path(__file__).parents[2] / "etude/recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_validates(file):
    recipe = load(str(file))
    assert recipe.recipe == file.stem
    assert recipe.stages


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_shipped_recipe_is_found_by_its_name(file):
    assert load(file.stem) == load(str(file))


def test_the_recipes_that_the_readme_names_are_shipped():
    assert {"glm45_quick", "glm45_tiny", "glm45_small", "glm45_paper", "glm45_air_paper"} <= {
        file.stem for file in RECIPES
    }
