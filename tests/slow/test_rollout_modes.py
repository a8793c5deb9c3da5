"""Every way to sample, from the command line to the end of a stage, on a model that has learnt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_run import WHOLE

BASE = {"prompts": 4, "per_prompt": 4, "max_tokens": 12}
WAYS = {
    "sync": {"updates": 2, "dynamic": {"rounds": 2}},
    "one_step": {"mode": "one_step"},
    "async": {"mode": "async", "max_age": 2},
    "partial": {"partial": 6, "older": "mask"},
    "whole": {"routes": True, "overlap": True, "repetition": {"tokens": 6, "probability": 0.5}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose stages before rl are there, and what makes it go on under other words."""
    folder = tmp_path_factory.mktemp("modes")
    (folder / "whole.yaml").write_text(WHOLE)

    def go(rollout, *more):
        words = json.dumps(BASE | rollout)
        command = [sys.executable, "-m", "etude", "train", "whole.yaml", f"rl.rollout={words}"]
        command += ["rl.steps=6", "--until", "rl", "--out", "run", *more]
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        text = (folder / "run/metrics.jsonl").read_text()
        return [row for row in map(json.loads, text.splitlines()) if row.get("stage") == "rl"]

    return go


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_stage_runs_to_its_end_in_every_mode(run, way):
    rows = run(WAYS[way])[-6 * WAYS[way].get("updates", 1) :]
    seen = [row for row in rows if "reward" in row]
    assert seen and all(0 <= row["reward"] <= 1 for row in seen)
    oldest = max(row["age_max"] for row in seen)
    most = {"sync": 0, "whole": 0, "one_step": 1, "async": 2, "partial": 6}[way]
    assert oldest <= most and (way not in ("one_step", "partial") or oldest > 0)
    assert rows[0].get("logp_gap", 0) < 1e-4
