"""The quick recipe of Kimi K2, whole: every stage runs, learns, and writes its figures."""

import json

import pytest

from etude.evals.table import aggregate
from etude.run import train
from etude.train.log import read


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_stage_of_the_quick_recipe_runs_and_learns(tmp_path):
    folder = train("kimi_k2_quick", ["threads=1"], out=tmp_path / "run")
    told = json.loads((folder / "run.json").read_text())
    assert all(stage["status"] == "done" for stage in told["stages"])
    lines = list(read(folder / "metrics.jsonl"))
    trained = {line["stage"] for line in lines}
    assert trained == {"stable", "decay", "anneal", "long", "extend", "sft"}
    tops = [line["max_logit"] for line in lines if line["stage"] in ("stable", "decay", "anneal")]
    assert max(tops) < 15  # tau is 10; one step's growth was 0.9
    assert any(line["clipped_heads"] for line in lines)
    rows = {(r["task"], r["metric"]): r["cells"] for r in aggregate([folder])["rows"]}
    bits = [cell and cell["value"] for cell in rows["general", "bpb"]]
    assert bits[2] < bits[1] < bits[0]  # the decay of the rate brings what a constant one does not
    assert "max_logit" in (folder / "report.html").read_text()
