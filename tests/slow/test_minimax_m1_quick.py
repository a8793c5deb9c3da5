"""The quick recipe of MiniMax-M1, whole: every stage runs, learns, and writes its figures."""

import pytest

from etude.evals.figures import Key, load
from etude.evals.page import write_report
from etude.run import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_every_stage_of_the_quick_recipe_runs_and_learns(tmp_path):
    train("minimax_m1_quick", ["threads=1"], out=tmp_path / "run")
    figures = load(tmp_path / "run")

    def value(stage, column, task, level, mode, metric):
        found = figures.cell(Key(column, task, level, mode, metric), stage)
        assert found is not None
        return found.value

    text = ("language", "general", None, "-", "bpb")
    assert value("base_decay", *text) < value("model", *text) - 1
    far = ("length", "long", 2048, "-", "bpb there")
    assert value("extend_1m", *far) < value("base_decay", *far)
    solved = ("reasoning", "var", 0, "think", "sampled")
    assert value("cold_start", *solved) > value("extend_1m", *solved)
    page = write_report(tmp_path / "run").read_text()
    assert "Far into a text" in page
