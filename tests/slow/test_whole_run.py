"""A real run under real kills, and over two processes: the end is the same.

The recipe is the small one of every kind of stage, with rewards that an untrained model sometimes
earns, so that reinforcement learning and rejection sampling have something to go on with.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from etude.files import read_json
from etude.models.checkpoint import load
from tests.test_run import WHOLE

pytestmark = pytest.mark.slow
STAGES = ("pretrain", "midtrain", "sft", "rl", "unify")
LEARNS = [
    "pretrain.tokens=6000",
    "midtrain.tokens=6000",
    "sft.data.tasks={instruct: {}}",
    "sft.tokens=12k",
    "rl.environments=[{name: instruct}]",
    "rl.rollout={prompts: 12, per_prompt: 32, max_tokens: 12}",
    "rl.steps=8",
    "unify.samples_of=[{stage: rl, tasks: {instruct: {}}, thinking: 0}]",
    "unify.prompts=32",
    "unify.tries=8",
    "unify.max_tokens=12",
    "unify.tokens=1200",
    "save_every=2",
]


class Run:
    """`etude train` in processes of its own; what it says is read as it comes."""

    def __init__(self, recipe, out, *, ranks=1, overrides=LEARNS):
        command = [sys.executable, "-m"]
        if ranks > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        command += ["etude", "train", str(recipe), *overrides, "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipe)
        self.said = ""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.said += line

    def reaches(self, text, seconds=60):
        """Wait for a line; false if the run ended without it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            if text in self.said:
                return True
            time.sleep(0.005)
        return text in self.said

    def stop(self, number):
        self.process.send_signal(number)
        return self.ends()

    def ends(self, seconds=300):
        code = self.process.wait(seconds)
        self.reader.join()
        return code

    def children(self):
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in listed.split()]


def weights(run, stage):
    return load(Path(run) / "stages" / stage / "checkpoint").state_dict()


def furthest(run, other, stage):
    """The largest difference between two runs in any weight of a stage."""
    one, two = weights(run, stage), weights(other, stage)
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def lines(run, stage):
    read = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return [line for line in read if line["stage"] == stage]


TIMES = re.compile("time|tok_s|seconds|logp_gap")


def numbers(run, stage):
    """Every logged figure that does not tell the time, or is measured once a process."""
    return [{k: v for k, v in line.items() if not TIMES.match(k)} for line in lines(run, stage)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(WHOLE)
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The run that nothing disturbed, in which every stage learns something."""
    out = tmp_path_factory.mktemp("run") / "whole"
    run = Run(recipe, out)
    assert run.ends() == 0, run.said
    assert sum("loss" in line for line in lines(out, "rl")) >= 2
    assert read_json(out / "stages" / "unify" / "done.json")["kept"]["rl"]["kept"] > 0
    return out


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_in_every_stage_ends_bit_identical(recipe, whole, tmp_path, seed):
    out, rng = tmp_path / "killed", random.Random(seed)
    kills = []
    for name in ("tokenizer", *STAGES, "eval"):
        for _ in range(3):
            if (out / "stages" / name / "done.json").exists():
                break
            run = Run(recipe, out)
            if run.reaches("tokenizer" if name == "tokenizer" else f"{name} ("):
                time.sleep(rng.uniform(0, 0.25))
                kills.append(name)
            assert run.stop(signal.SIGKILL) in (-signal.SIGKILL, 0)
    run = Run(recipe, out)
    assert run.ends() == 0, run.said
    assert len(set(kills)) >= 5, f"too fast for the test to mean anything: {kills}"
    for stage in STAGES:
        assert furthest(whole, out, stage) == 0, stage
        assert numbers(whole, stage) == numbers(out, stage)
        steps = [line["step"] for line in lines(out, stage)]
        assert steps == list(range(1, len(steps) + 1)), stage
    for name in ("model", "rl", "unify"):
        for folder in ("evals", "samples"):
            file = f"{folder}/{name}.json"
            assert read_json(out / file) == read_json(whole / file)
    assert (out / "rollouts" / "rl.jsonl").read_text() == (
        whole / "rollouts" / "rl.jsonl"
    ).read_text()
    assert not list(out.rglob("*.part")) and not list(out.rglob("state"))
    assert not at_work(out)


def at_work(out):
    """Processes that have a run's folder on their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(out) in place.read_text():
                found.append(place)
        except OSError:  # gone meanwhile
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_says_how_to_go_on_and_ends_with_the_code_of_its_signal(
    recipe, tmp_path, number
):
    run = Run(recipe, tmp_path / "run", overrides=["pretrain.tokens=200k"])
    assert run.reaches("pretrain  ")
    assert run.stop(number) == 128 + number
    assert "the same command goes on from there" in run.said
    assert "Traceback" not in run.said


def test_two_runs_in_one_folder_are_refused_and_the_first_goes_on(recipe, tmp_path):
    out = tmp_path / "shared"
    first = Run(recipe, out, overrides=["pretrain.tokens=40k", "--until", "pretrain"])
    assert first.reaches("pretrain  ")
    second = Run(recipe, out, overrides=["pretrain.tokens=200k"])
    assert second.ends() == 1
    told = second.said.splitlines()
    assert len(told) == 1 and told[0].startswith(f"error: {out}: another run is at work in it")
    assert first.ends() == 0, first.said


BOUND = 5e-4
# few steps: what rounding there is in a gradient of few tokens, an orthogonal or sign-like step
# makes a thousand times larger, and a longer run ends elsewhere, in other choices of experts
SHORT = [
    "sft.data.tasks={instruct: {}}",
    "sft.tokens=2000",
    "rl.environments=[{name: instruct}]",
    "rl.rollout={prompts: 12, per_prompt: 64, max_tokens: 12}",
    "rl.steps=4",
]
# A gradient that is a sum of terms of 1e-2 which cancel is known to 5e-8. AdamW divides it by its
# own size plus eps: with the usual 1e-8 such a number (one of all weights here) takes a step of its
# own on each side, 6e-4 apart, and later a choice of experts flips. An eps above the rounding
# leaves none.
ADAMW = [f"{stage}.optimizer={{kind: adamw, learning_rate: 3e-3, eps: 1e-5}}" for stage in STAGES]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", [[], ADAMW], ids=["muon", "adamw"])
def test_two_ranks_run_every_stage_as_one_does(recipe, tmp_path, optimizer):
    """Measured: losses 1e-6, weights 3e-5 with Muon and 1e-6 with AdamW; a lost rank moves 1e-2."""
    for ranks in (1, 2):
        run = Run(recipe, tmp_path / str(ranks), ranks=ranks, overrides=SHORT + optimizer)
        assert run.ends() == 0, run.said
    learned = 0
    for stage in STAGES:
        moved = furthest(tmp_path / "1", tmp_path / "2", stage)
        assert moved < (BOUND / 25 if optimizer else BOUND), (stage, moved)
        for one, two in zip(*(lines(tmp_path / n, stage) for n in "12"), strict=True):
            assert one["tokens"] == two["tokens"] and one.get("reward") == two.get("reward")
            for name in {"loss", "mtp_loss", "grad_norm"} & (one.keys() | two.keys()):
                assert one[name] == pytest.approx(two[name], rel=0, abs=1e-5), (stage, name)
            learned += stage == "rl" and "loss" in one
    assert learned >= 2 or optimizer  # an untrained policy earns enough to learn from with Muon
    for n in "12":
        about = read_json(tmp_path / n / "run.json")
        assert [row["status"] for row in about["stages"]] == ["done"] * 6


def test_a_kill_of_torchrun_leaves_no_rank_behind(recipe, tmp_path):
    out = tmp_path / "run"
    run = Run(recipe, out, ranks=2, overrides=["pretrain.tokens=2M"])
    assert run.reaches("pretrain  ")
    assert len(at_work(out)) == 3
    run.process.kill()
    run.process.wait(10)
    run.reader.join(20)  # the ranks hold the other end of this pipe
    left = at_work(out)
    for place in left:
        os.kill(int(place.parent.name), signal.SIGKILL)
    assert not left


@pytest.mark.timeout(900)
def test_the_end_of_one_rank_ends_the_other_and_any_number_goes_on(recipe, tmp_path):
    overrides = ["pretrain.tokens=10k", "save_every=5", "--until", "pretrain"]
    alone = Run(recipe, tmp_path / "alone", overrides=overrides)
    assert alone.ends() == 0, alone.said
    for killed, then in ((0, 1), (1, 2)):
        out = tmp_path / f"{killed}{then}"
        run = Run(recipe, out, ranks=2, overrides=overrides)
        saved = out / "stages" / "pretrain" / "state" / "latest.json"
        while run.process.poll() is None and not saved.exists():
            time.sleep(0.01)
        ranks = run.children()
        assert len(ranks) == 2
        os.kill(ranks[killed], signal.SIGKILL)
        assert run.ends(60) != 0
        assert not at_work(out)
        rest = Run(recipe, out, ranks=then, overrides=overrides)
        assert rest.ends() == 0, rest.said
        assert furthest(tmp_path / "alone", out, "pretrain") < BOUND
        steps = [line["step"] for line in lines(out, "pretrain")]
        assert steps == list(range(1, len(steps) + 1))
