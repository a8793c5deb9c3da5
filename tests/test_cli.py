"""The command line answers a wrong request with one line, the right exit code, and no traceback."""

import os
import subprocess
import sys

import pytest


def etude(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "etude", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "COLUMNS": "200"},
        timeout=120,
    )


WRONG = [
    (("trian", "glm45_quick"), "No such command 'trian'"),
    (("train",), "Missing argument"),
    (("train", "glm45_quik"), "glm45_quik: is neither a shipped recipe nor a YAML file"),
    (("train", "glm45_quick", "rl_hard.stps=3"), "rl_hard.stps: no such field; did you mean"),
    (("train", "glm45_quick", "rl_hard.steps=many"), "rl_hard.steps: 'many'"),
    (("train", "glm45_quick", "--until", "sft"), "--until sft: no such stage"),
    (("train", "glm45_quick", "mid_agent.data.length=9000"), "expected at most 4096"),
    (("plan", "glm45_quick", "model.config.hiden_size=3"), "did you mean hidden_size?"),
    (("show", "glm54"), "family: 'glm54'"),
    (("show", "stage", "evl"), "did you mean eval?"),
    (("chat", "no/such/folder"), "no/such/folder"),
    (("eval", "no_such_run"), "no_such_run: holds no evaluation"),
    (("rollouts", "no_such_run"), "no_such_run: no such run"),
    (("data", "build", "smok"), "did you mean smoke?"),
    (("data", "fetch", "shakespear"), "did you mean shakespeare?"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_a_wrong_request_is_answered_with_one_line(arguments, message, tmp_path):
    done = etude(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert message in lines[0]
    assert not list(tmp_path.iterdir()), "a refused request leaves nothing behind"


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_without_a_verb_the_verbs_are_listed(arguments, tmp_path):
    done = etude(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Usage: ") and "Commands:" in done.stderr


def test_the_version_is_shown(tmp_path):
    from etude import __version__

    done = etude("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"etude {__version__}\n", "")


def test_the_other_ranks_keep_quiet(tmp_path):
    command = [sys.executable, "-m", "etude", "train", "glm45_quik"]
    quiet = os.environ | {"PYTHONPATH": os.getcwd(), "RANK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=120)
    assert (done.returncode, done.stderr) == (2, "")


def test_shipped_recipes_are_listed_with_what_they_are_for():
    listed = etude("show", "recipes").stdout.splitlines()
    assert any(line.startswith("glm45_quick") and "every stage" in line for line in listed)


def test_a_stage_shows_each_key_with_its_default_and_meaning():
    told = etude("show", "stage", "sft").stdout
    assert "clip               1.0" in told
    assert "tokens             (needed)" in told
    assert "how many row tokens to train on" in told


def test_a_plan_is_one_object_per_stage_when_asked_for_json():
    import json

    rows = [json.loads(line) for line in etude("plan", "glm45_quick", "--json").stdout.splitlines()]
    assert rows[0]["name"] == "pretrain_general"
    assert rows[0]["tokens"] == 300_000
