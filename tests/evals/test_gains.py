"""What is compared with what follows from the recipe's graph."""

import math

import pytest

from etude.evals.figures import Figures, Key
from etude.evals.gains import gains, pairs
from etude.evals.stats import Estimate
from etude.recipe.load import check, load, resolve

TEXT = {"data": {"mix": {"general": 1}}, "tokens": 100}
CHATS = {"data": {"tasks": {"rev": {}}}, "tokens": 100}
GAMES = {"environments": [{"name": "rev"}, {"name": "sum"}], "steps": 2}
HARD = {"difficulty": {"keep": "hard"}}


def graph(*stages):
    measured = {"stage": "eval", "of": ["model"]}
    return resolve(
        check({"recipe": "g", "model": {"family": "glm45"}, "stages": [*stages, measured]})
    )


BASE = {"stage": "pretrain", **TEXT}
SFT = {"stage": "sft", **CHATS}
MORE = {"stage": "sft", "name": "more", "from": "sft", **CHATS}
RL = {"stage": "rl", "from": "sft", **GAMES}
HARDER = {"stage": "rl", "name": "harder", "from": "sft", **GAMES, **HARD}


def compared(stages, measured):
    return [f"{p.after}>{p.before}" for p in pairs(graph(*stages), measured)]


def test_a_stage_is_held_against_the_nearest_measured_one_it_came_from():
    stages = (BASE, SFT, RL)
    assert compared(stages, ["model", "pretrain", "sft", "rl"]) == [
        "pretrain>model",
        "sft>pretrain",
        "rl>sft",
    ]
    assert compared(stages, ["model", "rl"]) == ["rl>model"]
    assert compared(stages, ["sft", "rl"]) == ["rl>sft"]
    assert compared(stages, ["rl"]) == []


def test_rl_is_held_against_more_fine_tuning_from_where_it_began_too():
    assert "rl>more" in compared((BASE, SFT, MORE, RL), ["sft", "more", "rl"])
    assert "more>rl" not in compared((BASE, SFT, MORE, RL), ["sft", "more", "rl"])
    assert "rl>more" not in compared((BASE, SFT, MORE, RL), ["sft", "rl"])


def test_hard_problems_are_held_against_moderate_ones_and_not_the_reverse():
    found = compared((BASE, SFT, RL, HARDER), ["sft", "rl", "harder"])
    assert "harder>rl" in found and "rl>harder" not in found
    twin = RL | {"name": "twin"}
    assert "twin>rl" not in compared((BASE, SFT, RL, twin), ["sft", "rl", "twin"])


def test_each_kind_of_stage_is_judged_by_what_it_trains():
    made = {p.after: p for p in pairs(graph(BASE, SFT, RL), ["model", "pretrain", "sft", "rl"])}
    assert made["rl"].tasks == {"rev", "sum"}
    assert "bpb" in made["pretrain"].metrics and "greedy" not in made["pretrain"].metrics
    assert {"greedy", "sampled"} <= set(made["sft"].metrics)


MEASURED = ("mid_agent", "sft_reasoning", "sft_more", "rl_moderate", "rl_moderate_only", "rl_hard")


def test_rl_that_follows_rl_is_also_held_against_the_fine_tuning_before_all_of_it():
    found = [(p.after, p.before) for p in pairs(load("glm45_tiny"), MEASURED)]
    before = [b for a, b in found if a == "rl_hard"]
    assert before == ["rl_moderate", "rl_moderate_only", "sft_reasoning", "sft_more"]
    assert [b for a, b in found if a == "rl_moderate"] == ["sft_reasoning", "sft_more"]


def test_a_pair_compares_the_families_that_the_stage_was_trained_on():
    by = {(p.after, p.before): p for p in pairs(load("glm45_tiny"), MEASURED)}
    assert by["rl_hard", "sft_more"].tasks == {"rev", "sort"}
    assert by["sft_reasoning", "mid_agent"].tasks is None


def key(task="rev", mode="think", metric="sampled"):
    return Key("reasoning", task, 0, mode, metric)


def run(**cells):
    """A run with two stages; cells by mode: values before and after."""
    rows = {
        key(mode=mode): tuple(None if v is None else Estimate(v, 0.0, 1.0, 100) for v in values)
        for mode, values in cells.items()
    }
    return Figures(("sft", "rl"), rows)


def told(runs, wanted):
    found = gains({str(i): one for i, one in enumerate(runs)}, wanted)
    return {(gain.label, gain.key.mode): gain.estimate for gain in found}


WANTED = pairs(graph(BASE, SFT, RL), ["sft", "rl"])


def test_a_gain_is_taken_inside_each_seed_and_averaged_over_them():
    """Where seeds start differently, the spread of the differences counts, not of the values."""
    runs = [run(nothink=(0.1, 0.4)), run(nothink=(0.5, 0.8)), run(nothink=(0.3, 0.6))]
    gain = told(runs, WANTED)["rl over sft", "nothink"]
    assert gain.value == pytest.approx(0.3)
    assert gain.low == pytest.approx(0.3) and gain.high == pytest.approx(0.3)


def test_one_seed_has_no_interval():
    gain = told([run(nothink=(0.1, 0.4))], WANTED)["rl over sft", "nothink"]
    assert gain.value == pytest.approx(0.3) and math.isnan(gain.low) and math.isnan(gain.high)


def test_what_one_of_the_stages_was_not_asked_has_no_gain():
    assert ("rl over sft", "nothink") not in told([run(nothink=(None, 0.4))], WANTED)


def test_thinking_is_held_against_not_thinking_where_a_stage_solves_anything():
    found = told([run(think=(0.0, 0.9), nothink=(0.0, 0.4))], [])
    assert found["rl: think over nothink", "think"].value == pytest.approx(0.5)
    assert ("sft: think over nothink", "think") not in found
