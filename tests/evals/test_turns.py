"""The page draws accuracy by the number of turns, where several were asked for."""

import json
import re

from etude.evals.report import turns
from etude.evals.report.record import Run


def result(stage, accuracies):
    place = {"column": "agentic", "task": "search", "level": 0, "mode": "nothink"}
    rows = [
        place | {"turns": limit, "metric": "greedy", "value": value}
        for limit, value in accuracies.items()
    ]
    return {"stage": stage, "rows": rows}


def test_there_is_one_line_a_stage_over_the_turns():
    told = [result("sft", {1: 0.0, 4: 0.2, 8: 0.25}), result("rl", {1: 0.0, 4: 0.6, 8: 0.75})]
    section = turns.section(Run({}, [], evals=told))
    assert section.count('class="line"') == 2 and "25 → 75 %" in section
    data = json.loads(re.search(r'data-points="([^"]*)"', section)[1])
    assert [y for _, y, *_ in data] == [0, 20, 25, 0, 60, 75]
    assert "rl, 8 turns:" in section


def test_a_run_asked_with_one_number_of_turns_has_no_such_section():
    row = {"column": "agentic", "task": "search", "level": 0, "mode": "nothink"}
    rows = [row | {"metric": "greedy", "value": 0.5}]
    assert turns.section(Run({}, [], evals=[{"stage": "sft", "rows": rows}])) is None
