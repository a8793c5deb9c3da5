"""What every shipped recipe must be, and its stages by name."""

from etude.data.check import check_names
from etude.models.describe import by_stage, planned
from etude.recipe.fit import check_fit
from etude.recipe.load import load
from etude.recipe.plan import cost


def stages(name):
    return {stage.name: stage for stage in load(name).stages}


def check_planned(recipe):
    """All that `etude plan` asks of a recipe before it prints the costs."""
    check_fit(recipe, planned(recipe), by_stage(recipe))
    check_names(recipe, ready=False)
    assert all(row.flops > 0 for row in cost(recipe, planned(recipe), 1e12))
