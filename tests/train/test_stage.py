"""A stage from start to checkpoint, through every kind of stop."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from etude.errors import EtudeError
from etude.models import checkpoint
from etude.recipe.parts import Balance
from etude.train.lock import hold
from etude.train.log import Log, read
from etude.train.objective import NextToken
from etude.train.stage import Stopped, run_stage
from tests.train import tiny

TOTAL = 400  # nine steps


def run(folder, *, source=None, kind="muon", log=None, **more):
    log = log or Log(folder, console="quiet")
    options = {"log": log, "total": TOTAL, "save_every": 3} | more
    spec = options.pop("spec", tiny.spec(kind))
    source = source or tiny.Fixed()
    model = tiny.model(**tiny.OF.get(kind, {}))
    return run_stage(spec, model, source, NextToken(), folder / "pretrain", **options)


def after_steps(count):
    """An interrupt that asks for a stop after some steps."""
    left = iter(range(count - 1, -1, -1))
    return lambda: next(left) == 0


def result(folder):
    """Final tensors and every logged number that is not a time."""
    model = checkpoint.load(folder / "pretrain" / "checkpoint")
    lines = list(read(folder / "metrics.jsonl"))
    for line in lines:
        del line["time"], line["tok_s"]
    return model.state_dict(), lines


def assert_same(folder, reference):
    tensors, lines = result(folder)
    expected, told = result(reference)
    assert lines == told
    assert tensors.keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in tensors.items())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder of an uninterrupted run of each optimizer, made when first asked for."""
    made = {}

    def of(kind="muon"):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            run(made[kind], kind=kind)
        return made[kind]

    return of


@pytest.mark.parametrize(
    ("kind", "after"), [("muon", 1), ("muon", 3), ("muon", 8), ("muonclip", 4), ("adamw", 4)]
)
def test_a_stage_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(
    reference, tmp_path, kind, after
):
    told = f"pretrain: stopped after step {after} .* the same command goes on"
    with pytest.raises(Stopped, match=told) as stop:
        run(tmp_path, kind=kind, interrupt=after_steps(after))
    assert stop.value.code == 130
    assert not (tmp_path / "pretrain" / "checkpoint").exists()
    run(tmp_path, kind=kind)
    assert_same(tmp_path, reference(kind))
    assert not (tmp_path / "pretrain" / "state").exists()


class Dice(tiny.Fixed):
    """Draws its rows with the global random numbers."""

    def next(self, progress):
        self.at = int(torch.randint(1000, ())) + random.randrange(1000)
        return super().next(progress)


def test_global_random_numbers_go_on_where_they_were(tmp_path):
    run(tmp_path / "straight", source=Dice())
    for after in (2, 3):  # nine steps in three starts
        torch.manual_seed(99)
        random.seed(99)
        with pytest.raises(Stopped):
            run(tmp_path / "cut", source=Dice(), interrupt=after_steps(after))
    run(tmp_path / "cut", source=Dice())
    assert_same(tmp_path / "cut", tmp_path / "straight")


def test_a_stage_goes_on_with_as_many_threads_as_it_had(tmp_path):
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):  # sums over other threads round differently
            torch.set_num_threads(threads)
            with pytest.raises(Stopped):
                run(tmp_path, interrupt=lambda: True)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_were_asked_for_stay_and_it_is_said_what_that_costs(tmp_path):
    said, before = [], torch.get_num_threads()
    log = Log(tmp_path, console="quiet")
    log.console.say = said.append
    told = "threads: 2 as asked for, but this stage was saved with 1"
    try:
        for threads, lines in ((1, 0), (2, 1), (2, 1)):
            torch.set_num_threads(threads)
            with pytest.raises(Stopped):
                run(tmp_path, log=log, interrupt=lambda: True, threads=threads)
            assert torch.get_num_threads() == threads
            assert len(said) == lines
        assert said[0].startswith(told) and "not bit for bit" in said[0]
    finally:
        torch.set_num_threads(before)


class Breaks(tiny.Fixed):
    """Raises in the middle of a step, once."""

    def __init__(self, at):
        super().__init__()
        self.fault_at = at

    def next(self, progress):
        if self.at == self.fault_at:
            raise RuntimeError("broken")
        return super().next(progress)


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_stage_that_broke_goes_on_from_its_last_saved_state(reference, tmp_path, at):
    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path, source=Breaks(at))
    run(tmp_path)
    assert_same(tmp_path, reference())


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    class Signals(tiny.Fixed):
        def next(self, progress):
            if progress.step == 1:
                signal.raise_signal(signal.SIGINT)
            return super().next(progress)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped after step 2") as stop:
        run(tmp_path, source=Signals())
    assert stop.value.code == 130 and signal.getsignal(signal.SIGINT) is before
    latest = json.loads((tmp_path / "pretrain" / "state" / "latest.json").read_text())
    assert latest["progress"]["step"] == 2 and latest["source"] == {"at": 2}


def test_a_stop_in_the_last_step_still_writes_the_checkpoint(tmp_path):
    with pytest.raises(Stopped, match="405 of 400 tokens"):
        run(tmp_path, interrupt=after_steps(9))
    assert (tmp_path / "pretrain" / "checkpoint" / "config.json").exists()


def test_a_state_of_other_settings_is_dropped_but_not_for_another_cut(tmp_path):
    said = []
    log = Log(tmp_path, console="quiet")
    log.console.say = said.append
    with pytest.raises(Stopped):
        run(tmp_path, interrupt=after_steps(4))
    finer = tiny.spec(batch=tiny.parts.Batch(micro=2))
    with pytest.raises(Stopped, match="stopped after step 5"):
        run(tmp_path, spec=finer, source=tiny.Fixed(micro=2), log=log, interrupt=lambda: True)
    assert not said
    run(tmp_path, kind="adamw", log=log)
    assert len(said) == 1 and "starts anew" in said[0]
    steps = [line["step"] for line in read(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, 10))


@pytest.mark.parametrize("change", [{"seed": 1}, {"total": 500}, {"key": "other data"}])
def test_a_state_made_from_something_else_is_dropped(tmp_path, change):
    said = []
    log = Log(tmp_path, console="quiet")
    log.console.say = said.append
    with pytest.raises(Stopped):
        run(tmp_path, interrupt=after_steps(2))
    with pytest.raises(Stopped, match="stopped after step 1 "):
        run(tmp_path, log=log, interrupt=lambda: True, **change)
    assert len(said) == 1 and "starts anew" in said[0]


def test_a_stage_stopped_with_one_cut_goes_on_with_another(reference, tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, interrupt=lambda: True)
    run(tmp_path, source=tiny.Fixed(micro=1))
    tensors, _ = result(tmp_path)
    for name, tensor in result(reference())[0].items():
        torch.testing.assert_close(tensors[name], tensor, atol=2e-4, rtol=0, msg=name)


def test_the_rotary_base_of_a_stage_reaches_the_saved_config(tmp_path):
    run(tmp_path, spec=tiny.spec(rope_theta=1e6), total=100)
    model = checkpoint.load(tmp_path / "pretrain" / "checkpoint")
    config = json.loads((tmp_path / "pretrain" / "checkpoint" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
    assert {rope.theta for rope, _ in model.ropes} == {1e6}


def test_two_runs_in_one_folder_are_refused_and_the_first_goes_on(tmp_path):
    told = f"another run .*process {os.getpid()}"
    with hold(tmp_path / "pretrain"), pytest.raises(EtudeError, match=told) as error:
        run(tmp_path)
    assert error.value.code == 1 and "\n" not in str(error.value)
    run(tmp_path, total=50)  # let go: works


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EtudeError, match=r"file/pretrain: cannot be written \(Not a directory\)"):
        run(tmp_path / "file", log=Log(None, console="quiet"))


def test_a_full_disk_leaves_the_state_before_and_the_run_goes_on_from_it(tmp_path, reference):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(tiny.Fixed):
        def next(self, progress):
            if progress.step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            return super().next(progress)

    try:
        told = r"step-6: cannot be written \(File too large\).*free some space"
        with pytest.raises(EtudeError, match=told) as error:
            run(tmp_path, source=Fills())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    state = tmp_path / "pretrain" / "state"
    assert sorted(path.name for path in state.iterdir()) == ["latest.json", "step-3"]
    run(tmp_path)
    assert_same(tmp_path, reference())


def test_a_run_that_diverged_keeps_the_last_state_that_was_good(tmp_path):
    class Diverges(NextToken):
        def __call__(self, scores, micro):
            loss, seen = super().__call__(scores, micro)
            return (loss * torch.inf if len(read_steps(tmp_path)) >= 4 else loss), seen

    stage, log = tmp_path / "pretrain", Log(tmp_path, console="quiet")
    options = {"log": log, "total": 10_000, "save_every": 2}
    with pytest.raises(EtudeError, match="not finite in 10 steps in a row, up to step 14"):
        run_stage(tiny.spec(), tiny.model(), tiny.Fixed(), Diverges(), stage, **options)
    latest = json.loads((stage / "state" / "latest.json").read_text())
    assert (latest["progress"]["step"], latest["progress"]["streak"]) == (4, 0)
    assert all(line["loss"] is None for line in read_steps(tmp_path)[4:])


def read_steps(folder):
    return list(read(folder / "metrics.jsonl"))


def test_a_damaged_state_is_named_with_what_to_do(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, interrupt=lambda: True)
    for path in (tmp_path / "pretrain" / "state" / "step-1").glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EtudeError, match="step-1: is damaged or of another model; remove .*state"):
        run(tmp_path)


def changed(**changes):
    return lambda latest: latest | changes


@pytest.mark.parametrize(
    "harm",
    [
        lambda latest: "x",
        lambda latest: [latest],
        lambda latest: None,
        lambda latest: {k: v for k, v in latest.items() if k != "tensors"},
        changed(tensors=3),
        changed(threads="2"),
        changed(progress={"stepp": 1}),
        changed(source={}),
        changed(random={"torch": "x", "python": [3, [], None]}),
    ],
)
def test_a_damaged_record_of_the_state_is_named_with_what_to_do(tmp_path, harm):
    with pytest.raises(Stopped):
        run(tmp_path, interrupt=lambda: True)
    path = tmp_path / "pretrain" / "state" / "latest.json"
    path.write_text(json.dumps(harm(json.loads(path.read_text()))))
    told = "latest.json: is no saved state; remove .*state to start the stage anew"
    with pytest.raises(EtudeError, match=told) as error:
        run(tmp_path)
    assert error.value.code == 1 and "\n" not in str(error.value)


def test_what_a_kill_left_behind_is_cleared_away(tmp_path):
    stage = tmp_path / "pretrain"
    for name in (".checkpoint.x.part", "state/step-7", "state/step-9"):
        (stage / name).mkdir(parents=True)
    run(tmp_path)
    assert sorted(path.name for path in stage.iterdir()) == [".lock", "checkpoint"]


PROGRAM = """
import sys, time
from pathlib import Path
import torch
from etude.errors import EtudeError
from etude.train.log import Log
from etude.train.objective import NextToken
from etude.train.stage import run_stage
from tests.train import tiny

folder = Path(sys.argv[1])
torch.set_num_threads(1)
source = tiny.Fixed(8, 4)
try:
    log, stage = Log(folder, console="quiet"), folder / "pretrain"
    options = {"log": log, "total": 8000, "save_every": 2}
    run_stage(tiny.spec(), tiny.model(), source, NextToken(), stage, **options)
except EtudeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.code)
"""


@pytest.mark.slow
def test_killed_again_and_again_the_end_is_the_same_to_the_last_bit(tmp_path):
    def start(folder):
        command = [sys.executable, "-c", PROGRAM, str(folder)]
        here = Path(__file__).parents[2]
        return subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True)

    straight = start(tmp_path / "straight")
    began = time.monotonic()
    assert straight.wait() == 0
    whole = time.monotonic() - began
    killed = tmp_path / "killed"
    kills = 0
    for attempt in range(40):
        process = start(killed)
        try:
            # importing takes most of the first half
            process.wait(timeout=whole * (0.55 + 0.037 * (attempt % 9)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if attempt % 4 else signal.SIGINT)
        error = process.communicate()[1]
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode in (-signal.SIGKILL, 130, -signal.SIGINT), error
    assert process.returncode == 0 and kills >= 2
    assert_same(killed, tmp_path / "straight")


def test_frozen_weights_stay_and_the_selection_bias_moves(tmp_path):
    spec = tiny.spec("adamw", frozen=("*.router.weight",), balance=Balance(bias_rate=0.1))
    before = tiny.model().state_dict()
    run(tmp_path, spec=spec)
    after = checkpoint.load(tmp_path / "pretrain" / "checkpoint").state_dict()
    routers = [name for name in before if ".router." in name]
    moved = {name: not before[name].equal(after[name]) for name in routers}
    assert moved == {name: name.endswith("bias") for name in routers}
    assert not before["embed.weight"].equal(after["embed.weight"])


@pytest.mark.parametrize(
    ("pattern", "message"), [("*.rooter.weight", "the name of a weight"), ("*", "every weight")]
)
def test_a_pattern_that_freezes_nothing_or_all_is_refused(tmp_path, pattern, message):
    with pytest.raises(EtudeError, match=message):
        run(tmp_path, spec=tiny.spec("adamw", frozen=(pattern,)))
