"""Reinforcement learning of Nemotron 3's quick recipe: it runs whole, and keeps its promises."""

import pytest

from etude.evals.figures import load
from etude.models import checkpoint
from etude.run import train
from etude.train.log import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_every_stage_behind_fine_tuning_runs_and_keeps_its_promises(tmp_path):
    folder = train("nemotron3_quick", ["threads=1"], out=tmp_path / "run")
    lines = [line for line in read(folder / "metrics.jsonl") if "stage" in line]

    def of(stage, name):
        return [line[name] for line in lines if line["stage"] == stage and name in line]

    (gap,) = of("rlvr", "logp_gap")
    assert gap < 1e-4
    assert len(of("rlvr", "reward")) == 8 and max(of("rlvr", "mixed")) > 0.25
    assert min(of("teacher_reason", "mixed")) > 0.5  # nearly every group teaches
    weights = {
        name: checkpoint.load(folder / "stages" / name / "checkpoint").state_dict()
        for name in ("sft_environments", "rlvr", "mopd")
    }
    start = weights.pop("sft_environments")
    for made in weights.values():
        routers = [name for name in start if ".router." in name and not name.startswith("mtp")]
        for name in routers:
            assert start[name].equal(made[name]) == name.endswith("weight")
    modes = {key.mode for key in load(folder).rows if key.task == "var"}
    assert modes >= {"think", "think 0", "think 8", "think 16"}
