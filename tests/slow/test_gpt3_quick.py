"""The quick ladder as it is shipped: minutes of training, and what the paper's figures show."""

import pytest

from etude.evals.figures import load
from etude.evals.figures import results as measured
from etude.evals.ladder import power_law, rungs
from etude.run import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_loss_falls_with_size_on_a_power_law_and_examples_are_worth_something(tmp_path):
    folder = train("gpt3_quick", out=tmp_path / "quick")
    ladder = rungs(measured(folder)[0])
    losses = [rung.loss for rung in ladder]
    assert losses == sorted(losses, reverse=True)
    law = power_law(ladder)
    assert law.exponent > 0
    assert law.fit > 0.8  # measured 0.92
    figures = load(folder)
    shown = {
        key.mode: [cell.value for cell in row if cell][-1]  # of the largest size
        for key, row in figures.rows.items()
        if (key.task, key.metric) == ("maps", "exact")
    }
    assert shown["8-shot"] > shown["0-shot"] + 0.15  # measured 0.33 and 0.01
