"""Tables of one run and of several seeds; gains are taken inside each seed."""

import json
import math

import pytest

from etude.errors import EtudeError
from etude.evals import table
from etude.evals.stats import wilson
from etude.files import write_json

REV = {"column": "reasoning", "task": "rev", "level": 2, "metric": "sampled"}
BITS = {"column": "language", "task": "code", "level": None, "mode": "-", "metric": "bpb"}
MODEL = "model: {family: glm45}"
RECIPE = f"""
recipe: small
{MODEL}
stages:
  - {{stage: sft, tokens: 1k, data: {{tasks: {{}}}}}}
  - stage: sft
    name: sft_more
    tokens: 1k
    data: {{tasks: {{}}}}
  - {{stage: rl, from: sft, steps: 1, environments: [{{name: rev}}], name: rl_moderate}}
  - {{stage: rl, from: sft, steps: 1, environments: [{{name: rev}}], name: rl,
     difficulty: {{keep: hard}}}}
  - {{stage: eval, of: [sft, sft_more, rl]}}
"""

LAST = "from: rl_moderate, steps: 1, environments: [{name: rev}], name: rl,"


def row(value, mode="nothink", **other):
    bounds = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}
    return REV | {"mode": mode} | bounds | other


def write(folder, stages, recipe=RECIPE):
    for order, (stage, rows) in enumerate(stages.items()):
        result = {"stage": stage, "order": order, "rows": rows}
        write_json(folder / f"evals/{stage}.json", result)
    (folder / "recipe.yaml").write_text(recipe)
    return folder


@pytest.fixture
def seeds(tmp_path):
    """Three seeds in which RL adds 0.20, 0.25 and 0.30 although its level varies more than that."""
    return [
        write(
            tmp_path / f"seed{n}",
            {
                "sft": [row(base), row(base + 0.5, mode="think")],
                "rl": [row(base + gain), row(0.5, task="sort")],
            },
        )
        for n, (base, gain) in enumerate([(0.1, 0.2), (0.4, 0.25), (0.25, 0.3)])
    ]


def gained(made):
    return {(g["label"], g["task"], g["mode"]): g["cell"] for g in made["gains"]}


def test_a_run_has_a_column_per_stage_in_order_and_one_per_baseline(tmp_path):
    base = BITS | {"value": 2.5, "low": 2.4, "high": 2.6, "n": 3, "baseline": {"gzip": 3.1}}
    folder = write(
        tmp_path,
        {"zero": [base], "after": [base | {"value": 2.0, "low": 1.9, "high": 2.1}, row(0.5)]},
    )
    made = table.aggregate([folder])
    assert made["columns"] == ["zero", "after", "gzip"]
    head, first, _, below, second, *_ = table.render(made).splitlines()
    assert head.split() == ["language", "task", "mode", "metric", "zero", "after", "gzip"]
    assert first.split()[0] == "code"
    assert first.endswith("2.500 ±0.100  2.000 ±0.100  3.100")
    assert below.split() == ["reasoning", "task", "mode", "metric", "after"], "only who was asked"
    assert second.split() == ["rev", "2", "nothink", "sampled", "50.0", "±10.0"]


def test_seeds_give_the_mean_with_students_interval(seeds):
    made = table.aggregate(seeds)
    sft, rl = made["rows"][0]["cells"]
    assert made["runs"] == [str(folder) for folder in seeds] and sft["n"] == 3
    assert (sft["value"], rl["value"]) == (pytest.approx(0.25), pytest.approx(0.5))
    assert sft["high"] - sft["value"] == pytest.approx(4.3027 * 0.15 / math.sqrt(3), rel=1e-4)


def test_a_gain_is_the_mean_of_each_seeds_own_difference(seeds):
    found = gained(table.aggregate(seeds))
    assert set(found) == {
        ("rl over sft", "rev", "nothink"),  # not sort: this stage does not train it
        ("sft: think over nothink", "rev", "think"),
    }
    gain = found["rl over sft", "rev", "nothink"]
    assert gain["value"] == pytest.approx(0.25)
    # paired: deviation 0.05 of the differences, not 0.15 of the levels
    assert gain["high"] - gain["value"] == pytest.approx(4.3027 * 0.05 / math.sqrt(3), rel=1e-4)
    assert found["sft: think over nothink", "rev", "think"]["value"] == pytest.approx(0.5)


def test_rl_is_compared_with_its_controls_and_with_the_nearest_measured_start(tmp_path):
    values = {"sft": 0.3, "sft_more": 0.4, "rl_moderate": 0.5, "rl": 0.7}
    folder = write(tmp_path, {stage: [row(value)] for stage, value in values.items()})
    found = {label: round(cell["value"], 6) for (label, *_), cell in gained_of(folder)}
    assert found == {
        "sft_more over sft": 0.1,
        "rl_moderate over sft": 0.2,
        "rl_moderate over sft_more": 0.1,
        "rl over sft": 0.4,
        "rl over sft_more": 0.3,
        "rl over rl_moderate": 0.2,  # not the reverse: moderate-only is the control
    }
    chain = RECIPE.replace("from: sft, steps: 1, environments: [{name: rev}], name: rl,", LAST)
    folder = write(tmp_path, {stage: [row(value)] for stage, value in values.items()}, chain)
    assert [label for (label, *_), _ in gained_of(folder) if label.startswith("rl over")] == [
        *("rl over rl_moderate", "rl over sft", "rl over sft_more")
    ]


def gained_of(folder):
    return gained(table.aggregate([folder])).items()


def test_modes_are_not_compared_where_a_stage_solves_nothing_in_either(tmp_path):
    zero = [row(0.0), row(0.0, mode="think")]
    folder = write(tmp_path, {"sft": zero, "rl": [row(0.0), row(0.3, mode="think")]})
    labels = {label for label, *_ in gained(table.aggregate([folder]))}
    assert labels == {"rl over sft", "rl: think over nothink"}


def test_numbers_of_turns_are_rows_of_their_own_and_gains_too(tmp_path):
    def rows(*values):
        return [row(value, turns=turns) for turns, value in zip((1, 8), values, strict=True)]

    folder = write(tmp_path, {"sft": rows(0.0, 0.2), "rl": rows(0.1, 0.7)})
    made = table.aggregate([folder])
    assert [(r["turns"], r["cells"][1]["value"]) for r in made["rows"]] == [(1, 0.1), (8, 0.7)]
    gained = {g["turns"]: g["cell"]["value"] for g in made["gains"]}
    assert gained == {1: pytest.approx(0.1), 8: pytest.approx(0.5)}
    assert "rev 2, turns 8" in table.render(made)
    assert "turns" not in table.aggregate([write(tmp_path / "o", {"sft": [row(0.5)]})])["rows"][0]


def test_one_run_has_gains_without_an_interval(seeds):
    made = table.aggregate(seeds[:1])
    assert gained(made)["rl over sft", "rev", "nothink"]["value"] == pytest.approx(0.2)
    line = next(line for line in table.render(made).splitlines() if "rl over sft" in line)
    assert line.endswith("+20.0")


def test_runs_of_different_stages_are_not_mixed(seeds, tmp_path):
    other = write(tmp_path / "other", {"sft": [row(0.5)]})
    with pytest.raises(EtudeError, match="measures sft, expected sft, rl"):
        table.aggregate([*seeds, other])


def test_a_folder_without_evaluations_is_one_clear_error(tmp_path):
    with pytest.raises(EtudeError, match="holds no evaluation"):
        table.aggregate([tmp_path])


def test_figures_that_another_recipe_left_in_the_folder_are_left_out_and_said(tmp_path):
    """`run.json` names those of the recipe that ran last; where it names none, all are shown."""
    folder = write(tmp_path, {stage: [row(0.5)] for stage in ("base", "sft", "rl")})
    assert table.aggregate([folder])["columns"] == ["base", "sft", "rl"]
    for stage in ("base", "sft", "rl"):
        path = folder / f"evals/{stage}.json"
        write_json(path, json.loads(path.read_text()) | {"key": f"{stage} now"})
    write_json(folder / "run.json", {"figures": {"sft": ["sft before"], "rl": ["x", "rl now"]}})
    made = table.aggregate([folder])
    assert made["columns"] == ["rl"]
    stale = [str(folder / "evals" / name) for name in ("base.json", "sft.json")]
    assert made["left_out"] == stale
    last = table.render(made).splitlines()[-1]
    assert last == f"Left out, as measured under another recipe: {', '.join(stale)}."
    write_json(folder / "run.json", {"figures": {}})
    with pytest.raises(EtudeError, match="holds no evaluation of the recipe that ran last"):
        table.aggregate([folder])


def test_the_json_is_strict_and_the_text_shows_the_same_figures(seeds):
    made = table.aggregate(seeds)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    text = table.render(made)
    assert "25.0 ±37.3" in text and "+25.0 ±12.4" in text


def test_a_lopsided_interval_is_shown_by_its_farther_end():
    """None right of 40 may well be 8.8 % (Wilson), never -4.4 % to 4.4 %."""
    none, most = wilson(0, 40), wilson(39, 40)
    cells = [{"value": e.value, "low": e.low, "high": e.high} for e in (none, most)]
    assert [table.figure(cell, "greedy") for cell in cells] == ["0.0 ±8.8", "97.5 ±10.4"]


def test_what_the_baselines_have_read_is_said_where_they_stand(seeds, tmp_path):
    base = BITS | {"value": 2.5, "low": 2.4, "high": 2.6, "n": 3}
    with_ = write(tmp_path, {"sft": [base | {"baseline": {"gzip": 3.1, "ngram": 2.2}}]})
    assert "have first read all training text" in table.render(table.aggregate([with_]))
    assert "ngram" not in table.render(table.aggregate(seeds))
