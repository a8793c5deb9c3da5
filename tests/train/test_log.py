"""What a run tells, to a file, a pipe, a program and trackers."""

import json
import math
import sys
import types

import pytest

from etude.errors import EtudeError
from etude.train import console, sinks
from etude.train.log import Log, read, reporter


def lines(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_one_line_and_what_is_not_finite_is_null(tmp_path):
    log = Log(tmp_path, console="quiet")
    log.begin("a", total=10)
    log.log("a", 1, {"loss": 1.23456789, "load": [[0.5, math.inf]], "reward": math.nan}, seen=5)
    (line,) = lines(tmp_path)
    assert line.pop("time") > 0
    assert line == {
        "stage": "a",
        "step": 1,
        "loss": 1.234568,
        "load": [[0.5, None]],
        "reward": None,
    }


def test_a_resumed_stage_drops_its_later_lines_and_one_that_a_kill_cut_short(tmp_path):
    log = Log(tmp_path, console="quiet")
    for stage in ("a", "b"):
        log.begin(stage, total=10)
        for step in (1, 2, 3):
            log.log(stage, step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "b", "step": 4, "lo')
    log.begin("b", total=10, step=2)
    found = [(line["stage"], line["step"]) for line in lines(tmp_path)]
    assert found == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2)]
    assert len(list(read(tmp_path / "metrics.jsonl"))) == 5


def test_a_rank_that_is_not_the_first_keeps_silent(tmp_path, capsys):
    log = Log(tmp_path, console="plain", main=False)
    log.begin("a", total=10)
    log.log("a", 1, {"loss": 1.0}, seen=5)
    log.say("hello")
    log.close()
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")


def test_json_lines_go_to_stdout(capsys):
    log = Log(None, console="json")
    log.begin("a", total=10)
    log.log("a", 1, {"loss": 1.0}, seen=5)
    log.say("a note")
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert first["loss"] == 1.0 and second == {"note": "a note"} and not err


def test_plain_lines_tell_share_figures_rate_and_time_left_and_spare_the_pipe(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    log = Log(None)  # stderr is no terminal here
    log.begin("pretrain", total=1000, seen=100)
    for step in range(1, 21):
        now[0] += 1
        values = {"loss": 2.0, "grad_norm": 1.5, "tok_s": 12345.6, "skipped": int(step == 20)}
        log.log("pretrain", step, values, seen=100 + 20 * step)
    log.close()
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert not out and len(told) == 5  # after 1, 6, 11, 16 seconds, and the last
    assert told[1] == "pretrain      22%  loss 2.000  grad 1.50  12,346 tok/s  eta 0:39"
    assert (
        told[-1] == "pretrain      50%  loss 2.000  grad 1.50  12,346 tok/s  1 not finite  eta 0:25"
    )


def test_a_terminal_gets_a_bar(capsys):
    log = Log(None, console="rich")
    log.begin("pretrain", total=1000)
    log.log("pretrain", 1, {"loss": 2.0}, seen=500)
    log.say("a [note]")
    log.close()
    err = capsys.readouterr().err
    assert "pretrain" in err and "50%" in err and "a [note]" in err


def test_work_that_is_no_training_shows_the_same_way(capsys):
    with reporter() as progress:
        for done in range(3):
            progress("reading", done, 2)
        progress("quality", 1, 1)
    told = [line.split("eta")[0].split() for line in capsys.readouterr().err.splitlines()]
    assert told == [["reading", "0%"], ["reading", "100%"], ["quality", "100%"]]


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:00"), (61, "1:01"), (7265.4, "2:01:05")])
def test_a_clock(seconds, told):
    assert console.clock(seconds) == told


class Tracker:
    """Takes the calls that W&B and trackio share."""

    def __init__(self):
        self.opened, self.seen, self.id, self.finished = [], [], "abc", False

    def module(self, name):
        found = types.ModuleType(name)
        found.init = self.init
        return found

    def init(self, **settings):
        self.opened.append(settings)
        return self

    def log(self, values):
        self.seen.append(values)

    def finish(self):
        self.finished = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_numbers_by_stage_and_a_resumed_run_goes_on_in_it(
    tmp_path, monkeypatch, name
):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, name, tracker.module(name))
    for _ in range(2):
        log = Log(tmp_path, sinks=[name], console="quiet")
        log.log("rl", 3, {"reward": 0.5, "max_load": [1.5, 2.0], "load": [[1.0]], "idle": None})
        log.close()
    seen = {"rl/step": 3, "rl/reward": 0.5, "rl/max_load/0": 1.5, "rl/max_load/1": 2.0}
    assert tracker.seen == [seen, seen] and tracker.finished
    first, second = tracker.opened
    assert first["resume"] == second["resume"] == "allow"
    assert "abc" in second.values()


def test_tensorboard_gets_a_curve_per_stage_and_value(tmp_path, monkeypatch):
    writer = Tracker()
    writer.add_scalar = lambda *scalar: writer.seen.append(scalar)
    writer.close = writer.finish
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: writer.opened.append(folder) or writer
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = Log(tmp_path, sinks=["tensorboard"], console="quiet")
    log.log("rl", 3, {"reward": 0.5})
    log.close()
    assert writer.opened == [str(tmp_path / "tensorboard")] and writer.finished
    assert writer.seen == [("rl/reward", 0.5, 3)]


@pytest.mark.parametrize("name", sorted(sinks.SINKS))
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EtudeError, match=rf"log.{name}: {name} is not .*etude\[log-{name}\]"):
        Log(tmp_path, sinks=[name], console="quiet")
    with pytest.raises(EtudeError, match="no sink 'x'"):
        Log(tmp_path, sinks=["x"], console="quiet")


def test_a_metrics_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    log = Log(tmp_path, console="quiet")
    with pytest.raises(EtudeError, match=r"metrics.jsonl: cannot be written \(Is a directory\)"):
        log.log("a", 1, {})
