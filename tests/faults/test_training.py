"""What goes wrong while a run trains: losses that are not finite, tools that fail, no data."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import etude as library
from etude.data import corpus
from etude.data.tools import TOOLS, Tool
from etude.rl.sampler import Completion
from etude.train.objective import NextToken
from tests.data.test_corpus import RECIPE, everything
from tests.test_run import WHOLE

CALL = "\n<tool_call>calculator\n<arg_key>expression</arg_key>\n<arg_value>1+1</arg_value>\n"
CALL += "</tool_call><|observation|>"


def lines(run, stage):
    read = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [line for line in read if line["stage"] == stage]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("tokens", ["20k", "600"], ids=["amid", "at the end"])
def test_a_run_that_diverges_stops_after_ten_steps_and_publishes_nothing(
    etude, recipe, tmp_path, kind, tokens
):
    """The first step breaks the weights; where the stage would end, it must not end on them."""
    overrides = [f"pretrain.optimizer={{kind: {kind}, learning_rate: 1e30}}"]
    overrides += [f"pretrain.tokens={tokens}", "save_every=1"]
    told = etude("train", recipe, *overrides, "--out", "run").error(code=1)
    assert told.startswith("pretrain: loss or gradient not finite in 10 steps in a row")
    assert "lower the learning rate" in told
    stage = tmp_path / "run" / "stages" / "pretrain"
    assert not (stage / "checkpoint").exists()
    saved = [path.name for path in (stage / "state").glob("step-*")]
    finite = [line["step"] for line in lines("run", "pretrain") if line["loss"] is not None]
    assert saved == [f"step-{finite[-1]}"] or tokens == "600"
    assert lines("run", "pretrain")[-1]["skipped"] == 9


class Spoils(NextToken):
    """Loses two steps of a stage, and the last."""

    calls = 0
    lost = (3, 4, 8)

    def __call__(self, scores, micro):
        loss, seen = super().__call__(scores, micro)
        Spoils.calls += 1
        return (loss * torch.nan if Spoils.calls in self.lost else loss), seen


def test_a_step_that_is_not_finite_is_skipped_counted_and_shown(etude, recipe, monkeypatch):
    monkeypatch.setattr("etude.workshop.NextToken", Spoils)
    monkeypatch.setattr("etude.train.console.SECONDS", 0)
    monkeypatch.setattr(Spoils, "calls", 0)
    done = etude("train", recipe, "--until", "pretrain", "--out", "run")
    assert done.code == 0 and "3 not finite" in done.err
    told = lines("run", "pretrain")
    assert [line["step"] for line in told if line["loss"] is None] == [3, 4, 8]
    assert len(told) == 9  # the eighth would have been the last; a stage ends on a finite one
    assert told[-1]["skipped"] == 3
    weights = library.load("run").state_dict().values()
    assert all(tensor.isfinite().all() for tensor in weights)
    about = json.loads(Path("run/stages/pretrain/done.json").read_text())
    assert (about["steps"], about["skipped"]) == (9, 3)


def test_a_stop_among_steps_that_are_not_finite_keeps_the_state_before_them(
    etude, recipe, monkeypatch
):
    """Weights behind such steps may be beyond repair; going on repeats the steps instead."""
    monkeypatch.setattr("etude.workshop.NextToken", Spoils)
    monkeypatch.setattr(Spoils, "calls", 0)
    asked = iter([False, False, False, True])
    monkeypatch.setattr("etude.train.stage.Interrupt.__call__", lambda self: next(asked, False))
    told = etude("train", recipe, "--out", "run", "save_every=1").error(code=130)
    assert "stopped after step 4" in told and "saved up to the last finite one" in told
    assert [path.name for path in Path("run/stages/pretrain/state").glob("step-*")] == ["step-2"]


class Calls:
    """A sampler that calls the calculator and nothing else."""

    def __init__(self, model, **_):
        self.ids = model.published.tokenizer.encode(CALL, special=True)

    async def sample(self, prompts, params):
        return [Completion(self.ids, [-0.5] * len(self.ids), "stop", 0) for _ in prompts]

    async def update(self, weights, version):
        pass


def children():
    """Processes that this one has started and not seen end."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile
            parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
            found |= {place.name} if int(parent) == os.getpid() else set()
    return found


def failing(expression: str) -> str:
    raise ValueError("out of order")


def hanging(expression: str) -> str:
    while True:
        pass


@pytest.mark.parametrize("function", [failing, hanging])
def test_a_tool_that_raises_or_hangs_costs_its_attempts_and_not_the_run(
    etude, recipe, monkeypatch, function
):
    schema = TOOLS["calculator"]({}).parameters
    broken = Tool("calculator", "out of order", schema, function)
    monkeypatch.setitem(TOOLS, "calculator", lambda pages: broken)
    monkeypatch.setattr("etude.rl.source.LocalSampler", Calls)
    overrides = ["rl.environments=[{name: calc, turns: 2}]", "rl.rollout.tool_seconds=0.1"]
    overrides += ["rl.rollout.max_tokens=200", "rl.steps=1", "rl.from=model"]
    before = children()
    done = etude("train", recipe, *overrides, "--until", "rl", "--out", "run")
    assert done.code == 0, done.err
    [step] = lines("run", "rl")
    assert (step["failed"], step["reward"]) == (1.0, 0.0)
    assert children() <= before  # no worker outlives the stage


def only(folder, stage):
    """Write `part.yaml`: the recipe with one kind of stage alone."""
    at = WHOLE.index("stages:")
    kept = [part for part in WHOLE[at:].split("  - stage: ")[1:] if part.startswith(stage)]
    text = WHOLE[:at] + "stages:\n" + "".join(f"  - stage: {part}" for part in kept)
    (folder / "part.yaml").write_text(text.replace("of: [model, rl, unify]", "of: [model]"))


def test_a_domain_without_a_source_here_is_dropped_said_and_made_up_for_by_the_others(
    etude, recipe, tmp_path, monkeypatch
):
    """The corpus of `everything` lacks math, for want of a package; the recipe is right."""
    built = corpus.build(RECIPE, folder=tmp_path / "corpus", sources=everything())
    monkeypatch.setattr("etude.opening.build", lambda *_, **__: built)
    overrides = ["corpus.size=smoke", "pretrain.data.mix={general: 1, code: 1, math: 2}"]
    command = ("train", recipe, *overrides, "--out", "run", "--until", "pretrain")
    done = etude(*command)
    assert done.code == 0, done.err
    why = "its sources are not on this machine (kite is not installed)"
    assert done.err.count(f"pretrain.data.mix: math is left out, {why}") == 1
    assert "epochs_code" in lines("run", "pretrain")[-1]
    only(tmp_path, "sft")
    mixed = "sft.data.replay_mix={math: 1, general: 1}"
    command = ("train", "part.yaml", "corpus.size=smoke", "--out", "run")
    done = etude(*command, "sft.data.replay=0.5", mixed)
    assert f"sft.data.replay_mix: math is left out, {why}" in done.err
    assert lines("run", "sft")[-1]["epochs_general"] > 0
    only(tmp_path, "eval")
    done = etude(*command, "eval.domains=[math, general]")
    assert f"eval.domains: math is left out, {why}" in done.err
    measured = json.loads((tmp_path / "run" / "evals" / "model.json").read_text())["rows"]
    assert [row["task"] for row in measured if row["metric"] == "bpb"] == ["general"]


def test_a_mix_of_no_domain_that_is_here_and_one_of_a_wrong_name_are_refused(
    etude, recipe, tmp_path, monkeypatch
):
    built = corpus.build(RECIPE, folder=tmp_path / "corpus", sources=everything())
    monkeypatch.setattr("etude.opening.build", lambda *_, **__: built)
    command = ("train", recipe, "corpus.size=smoke", "--out", "run")
    told = etude(*command, "pretrain.data.mix={math: 1}").error(code=2)
    assert told.startswith("pretrain.data.mix: names only domains that are not on this machine")
    told = etude(*command, "pretrain.data.mix={mathh: 1}").error(code=2)
    assert told.startswith("pretrain.data.mix: set mathh: no such set")
    assert told.endswith("did you mean math?")


EMPTY = [
    ("a.txt", "", "set folder:texts: has no document"),
    ("a.jsonl", "\n\n", "set folder:texts: has no document"),
    ("a.jsonl", "{}\n", "a.jsonl:1: a record has no field"),
    ("a.jsonl", '{"text": ""}\n', "set folder:texts: has no document"),
    ("a.jsonl.gz", "no gzip", "a.jsonl.gz: is cut short or damaged"),
]


@pytest.mark.parametrize(("name", "content", "told"), EMPTY)
def test_a_set_without_a_document_is_named(etude, recipe, tmp_path, name, content, told):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / name).write_text(content)
    override = "pretrain.data.mix={'folder:texts': 1}"
    assert told in etude("train", recipe, override, "--out", "run").error(code=2)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sft.data.length=4"], "chats: none fits into 4 tokens; raise data.length"),
        (["eval.domains=['folder:texts']", "eval.of=[model]"], "no held-out document"),
    ],
)
def test_a_stage_whose_data_come_to_nothing_says_so(etude, tmp_path, overrides, told):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("some words of one document")
    only(tmp_path, "sft" if "sft" in overrides[0] else "eval")
    done = etude("train", "part.yaml", *overrides, "--out", "run")
    assert told in done.error(2)
