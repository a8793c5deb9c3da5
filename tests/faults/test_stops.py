"""Ctrl-C and kills, between any two moments: the same command goes on, and the end is the same."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import etude as library
from etude import reading
from etude.files import DAY, atomic_folder, read_json, sweep
from tests.faults.conftest import rest

STAGES = ("pretrain", "midtrain", "sft", "rl", "unify")


def same(one, other, stages=STAGES):
    for stage in stages:
        a, b = (library.load(run / "stages" / stage / "checkpoint") for run in (one, other))
        for name, tensor in a.state_dict().items():
            if not torch.equal(tensor, b.state_dict()[name]):
                return False
    tables = ("rl.json", "unify.json") if stages == STAGES else ()
    return all(read_json(one / "evals" / t) == read_json(other / "evals" / t) for t in tables)


MOMENTS = [
    "etude.opening.new_tokenizer",
    "etude.opening.settle",
    "etude.workshop.written",
    "etude.posttraining.RolloutSource",
    "etude.posttraining.collect",
    "etude.workshop.evaluate",
    "etude.evals.page.write_report",
]


@pytest.fixture(autouse=True)
def heard():
    """A shell lets what it starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pressed(*_, **__):
    signal.raise_signal(signal.SIGINT)
    while True:  # Python looks for signals here; on the way out it may not
        pass


def test_ctrl_c_outside_of_training_ends_with_130_and_nothing_is_lost(
    etude, recipe, whole, tmp_path, monkeypatch
):
    """One run, stopped at one moment after the other."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    for moment in MOMENTS:
        with monkeypatch.context() as patch:
            patch.setattr(moment, pressed)
            done = etude("train", recipe, "--out", "run")
        assert done.code == 130, moment
        assert done.err.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
        assert "Traceback" not in done.err and not rest(tmp_path)
    assert etude("train", recipe, "--out", "run").code == 0
    assert same(tmp_path / "run", whole)


def test_ctrl_c_in_training_saves_and_says_how_to_go_on(etude, recipe, whole, monkeypatch):
    steps = []

    class Pressed(reading.Packed):
        def next(self, progress):
            steps.append(progress.step)
            if len(steps) == 5:
                signal.raise_signal(signal.SIGINT)
            return super().next(progress)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "Packed", Pressed)
        told = etude("train", recipe, "--out", "run", "--until", "pretrain").error(code=130)
    assert told.startswith("pretrain: stopped after step 5")
    assert told.endswith("all saved; the same command goes on from there")
    assert etude("train", recipe, "--out", "run", "--until", "pretrain").code == 0
    assert same(Path("run"), whole, ["pretrain"])


def forget(run, stage):
    """As if a kill had come between the end of a stage and the note that it is done."""
    (run / "stages" / stage / "done.json").unlink()


@pytest.mark.parametrize("stage", ["midtrain", "rl", "unify", "eval"])
def test_a_kill_before_a_stage_was_noted_as_done_changes_nothing(etude, recipe, whole, copy, stage):
    forget(copy, stage)
    (copy / "run.json").unlink()
    assert etude("train", recipe, "--out", copy).code == 0
    assert same(copy, whole)
    done = read_json(copy / "run.json")["stages"]
    assert [row["status"] for row in done] == ["done"] * 6


def test_a_kill_before_the_last_stage_reached_the_summary_is_made_up_for(etude, recipe, copy):
    told = read_json(copy / "run.json")
    told["stages"][-1] = {"name": "eval", "kind": "eval", "status": "waiting"}
    (copy / "run.json").write_text(json.dumps(told))
    assert "6 of 6 stages done" in etude("train", recipe, "--out", copy).out
    assert read_json(copy / "run.json")["stages"][-1]["status"] == "done"


def test_what_killed_writes_left_is_gone_after_the_next_start(etude, recipe, copy):
    for place in ("", "evals", "samples", "tokenizer", "stages/rl", "stages/eval"):
        (copy / place / ".run.json.abc.part").write_text("{")
    for name in (".checkpoint.x.part", ".checkpoint.x.old"):
        (copy / "stages" / "unify" / name).mkdir()
    forget(copy, "eval")
    assert etude("train", recipe, "--out", copy).code == 0
    assert not rest(copy)


def test_only_what_is_a_day_old_is_swept_where_others_may_be_at_work(tmp_path):
    for name in (".a.x.part", ".b.x.old", ".c.x.part", "d.part", ".e"):
        (tmp_path / name).mkdir()
    old = time.time() - DAY - 1
    for name in (".a.x.part", ".b.x.old"):
        os.utime(tmp_path / name, (old, old))
    with atomic_folder(tmp_path / "made") as new:
        assert sorted(p.name for p in tmp_path.iterdir() if p != new) == [
            ".c.x.part",
            ".e",
            "d.part",
        ]
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".e", "d.part", "made"]


@pytest.mark.parametrize("moment", ["before", "between"])
def test_ctrl_c_while_a_folder_is_replaced_leaves_the_old_one(tmp_path, monkeypatch, moment):
    """Between the two moves the old folder lies aside; it must come back."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights").write_text("old")
    move = os.replace
    moves = []

    def pressed(source, target):
        moves.append(target)
        if len(moves) == {"before": 1, "between": 2}[moment]:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", pressed)
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "run") as new:
        (new / "weights").write_text("new")
    assert (tmp_path / "run" / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["run"]


def test_a_stage_whose_checkpoint_is_gone_runs_again(etude, recipe, whole, copy):
    shutil.rmtree(copy / "stages" / "sft" / "checkpoint")
    assert etude("train", recipe, "--out", copy).code == 0
    assert same(copy, whole)
