"""Tokens per second behind a context: asked for in a recipe, told apart from shares."""

import pytest

from etude.errors import EtudeError
from etude.evals import table
from etude.evals.report import figures, speed
from etude.evals.report.record import Run
from etude.models.describe import planned
from etude.recipe.fit import check_fit
from etude.recipe.load import load

ROWS = [
    {"column": "speed", "task": "decode", "level": n, "mode": "-", "metric": metric, "value": v}
    | {"low": None, "high": None, "n": 16}
    for n in (256, 2048)
    for metric, v in (("tok/s", 1234.0), ("MB kept", n / 1000))
]


def test_a_context_that_leaves_no_room_to_write_is_refused_before_anything_runs():
    recipe = load("nemotron3_quick", ["eval.speed=[4090]"])
    with pytest.raises(EtudeError, match=r"eval\.speed: 4108 tokens"):
        check_fit(recipe, planned(recipe))
    recipe = load("nemotron3_quick", ["eval.speed=[4078]"])
    check_fit(recipe, planned(recipe))


def test_the_page_draws_a_line_a_stage_and_no_share_of_it():
    told = [{"stage": stage, "rows": ROWS} for stage in ("hybrid", "attention")]
    run = Run({}, [], evals=told)
    section = speed.section(run)
    assert section and section.count(">1,234</td>") == 4 and section.count(">2.048</td>") == 2
    assert figures.table(run) is None and speed.section(Run({}, [], evals=[])) is None


def test_the_table_prints_the_figures_as_they_are():
    assert table.figure({"value": 1234.0, "low": None, "high": None}, "tok/s") == "1234.000"
