"""The page draws a ladder and what examples are worth, and nothing where there is neither."""

import json
import re

from etude.evals.figures import build
from etude.evals.gains import gains
from etude.evals.report import charts, ladder
from etude.evals.report.record import Run


def result(stage, compute, loss, accuracies):
    place = {"column": "few-shot", "task": "maps", "level": None, "metric": "exact"}
    numbers = {"low": None, "high": None, "n": 50}
    rows = [
        place | numbers | {"mode": f"{shots}-shot", "shots": float(shots), "value": value}
        for shots, value in accuracies.items()
    ]
    told = {"parameters": 1000, "tokens": 5, "compute": compute, "loss": loss}
    return {"stage": stage, "order": 0, "rows": rows, "ladder": told}


RESULTS = [
    result("r1", 1e11, 5.0, {0: 0.1, 8: 0.2}),
    result("r2", 1e12, 4.5, {0: 0.1, 8: 0.5}),
    result("r3", 1e13, 4.0, {0: 0.1, 8: 0.9}),
    result("r4", 1e14, 3.6, {0: 0.1, 8: 0.9}),
]


def points(page):
    return json.loads(re.search(r'data-points="([^"]*)"', page).group(1).replace("&quot;", '"'))


def test_every_size_is_a_dot_in_logarithms_and_both_laws_are_told():
    page = ladder.section(Run({}, [], evals=RESULTS))
    assert page.count('class="dot"') == 4
    across = [place for _, _, place, _ in points(page)]
    assert across == [0, 33.33, 66.67, 100]
    assert "no floor" in page and "with a floor" in page
    assert "1.0e+11" in page


def test_examples_are_one_line_a_stage_by_the_number_shown():
    page = ladder.examples(Run({}, [], evals=RESULTS))
    assert page.count('class="line"') == 4
    assert [y for _, y, *_ in points(page)] == [10, 20, 10, 50, 10, 90, 10, 90]
    assert "20 → 90 %" in page


def test_a_run_without_a_ladder_has_no_such_sections():
    plain = Run({}, [], evals=[{"stage": "sft", "rows": []}])
    assert ladder.section(plain) is None
    assert ladder.examples(plain) is None


def test_a_task_that_no_size_solves_is_not_drawn():
    zero = [result("r1", 1e11, 5.0, {0: 0.0, 8: 0.0}), result("r2", 1e12, 4.0, {0: 0.0, 8: 0.0})]
    assert ladder.examples(Run({}, [], evals=zero)) is None


def test_one_stage_alone_is_drawn():
    assert ">20 %" in ladder.examples(Run({}, [], evals=RESULTS[:1]))
    assert "r1" in ladder.section(Run({}, [], evals=RESULTS[:1]))


def test_the_gain_from_examples_is_told_for_each_stage():
    found = gains({"run": build(RESULTS)}, [])
    told = {(g.label, g.key.mode): round(g.estimate.value, 3) for g in found}
    assert told[("r1: examples over none", "8-shot")] == 0.1
    assert told[("r3: examples over none", "8-shot")] == 0.8
    assert len(told) == 4


def test_a_law_with_a_single_place_still_has_a_frame():
    page = charts.scatter("x", [(1.0, 2.0)], [], labels=["only"])
    assert "50.0" in page or "50" in page
