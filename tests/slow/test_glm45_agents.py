"""The quick recipe of GLM-4.5's agents, whole: real servers, a sandbox, users, and RL upon RL."""

import json

import pytest

from etude.evals.table import aggregate
from etude.recipe.load import load
from etude.recipe.stages import Eval
from etude.run import train
from etude.train.log import read


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_stage_of_the_quick_recipe_runs_and_learns(tmp_path):
    folder = train("glm45_agents_quick", ["threads=1"], out=tmp_path / "run")
    told = json.loads((folder / "run.json").read_text())
    assert all(stage["status"] == "done" for stage in told["stages"])
    lines = list(read(folder / "metrics.jsonl"))
    trained = [s.name for s in load("glm45_agents_quick").stages if not isinstance(s, Eval)]
    assert {line["stage"] for line in lines} == set(trained)
    made = aggregate([folder])
    place = made["columns"].index
    rows = {
        (r["task"], r["level"], r["metric"], r.get("turns")): [c and c["value"] for c in r["cells"]]
        for r in made["rows"]
    }
    for task in ("search", "mcp:desk"):
        valid = rows[task, 0, "valid", None]
        assert valid[place("sft_agent")] > 0.9, "the format of calls is learnt first"
    for turns in (1, 2):  # a search of one hop takes three
        assert rows["search", 0, "greedy", turns][place("rl_agent_hard")] == 0
    unit = rows["unit", 0, "sampled", None]
    assert unit[place("rl_code")] > unit[place("sft_agent")] > 0
    page = (folder / "report.html").read_text()
    assert "More turns" in page and ", turns 8" in page
