"""Two sizes in one recipe, small enough for a test: trained from new weights, measured, drawn."""

import pytest
import torch

from etude.evals.table import aggregate, render
from etude.files import read_json
from etude.models.checkpoint import load
from etude.run import train
from etude.train.stage import Stopped

LADDER = """
recipe: ladder
model:
  family: gpt3
  size: mini
  config: {n_positions: 64, n_embd: 32, n_layer: 2, n_head: 2, d_head: 16}
tokenizer: {vocab: 300, sample_bytes: 20000}
corpus: {size: none, documents: 40}
save_every: 2
threads: 1
stages:
  - stage: pretrain
    name: small
    fresh: {n_embd: 16, n_head: 1}
    data: &data {mix: {maps: 2, traces: 1}, length: 32, mask: none}
    optimizer: {kind: adamw, learning_rate: 1e-2}
    schedule: &schedule {shape: cosine, warmup: 100, final: 0.1, total: 800}
    batch: &batch {rows: 4, ramp_from: 1, ramp_tokens: 400}
    tokens: 1000
  - stage: pretrain
    name: middle
    fresh: {n_embd: 24, n_head: 1, d_head: 24}
    data: *data
    optimizer: {kind: adamw, learning_rate: 1e-2}
    schedule: *schedule
    batch: *batch
    tokens: 1000
  - stage: pretrain
    name: large
    fresh: {}
    data: *data
    optimizer: {kind: adamw, learning_rate: 1e-2}
    schedule: *schedule
    batch: *batch
    tokens: 1000
  - stage: eval
    of: [small, middle, large]
    fewshot: {maps: {shots: [0, 2]}, 2D+: {shots: [0, 1], beams: 2}}
    items: 5
    domains: [traces]
    documents: 3
    length: 32
    ladder: true
    clean: true
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "ladder.yaml"
    path.write_text(LADDER)
    return str(path)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return train(recipe, out=tmp_path_factory.mktemp("runs") / "ladder")


def test_each_size_is_trained_from_its_own_new_weights(run):
    widths = {
        name: load(run / "stages" / name / "checkpoint").arch.dim
        for name in ("small", "middle", "large")
    }
    assert widths == {"small": 16, "middle": 24, "large": 32}
    assert load(run).arch.dim == 32
    assert [s["status"] for s in read_json(run / "run.json")["stages"]] == ["done"] * 4


def test_the_batch_grows_and_the_rate_ends_constant(run):
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"small"' in line]
    import json

    steps = [json.loads(line) for line in lines]
    tokens = [step["tokens"] for step in steps]
    sizes = [b - a for a, b in zip([0, *tokens], tokens, strict=False)]
    assert sizes[0] == 32
    assert sizes[-1] == 128
    assert steps[-1]["lr"] == pytest.approx(1e-3)


def test_the_table_and_the_page_tell_the_ladder_and_the_examples(run):
    found = aggregate([run])
    rungs = found["ladder"]["runs"][0]["rungs"]
    assert [rung["stage"] for rung in rungs] == ["small", "middle", "large"]
    assert rungs[0]["compute"] == 6 * rungs[0]["parameters"] * rungs[0]["tokens"]
    text = render(found)
    assert "no floor: L = " in text
    asked = {(row["task"], row["mode"], row["metric"]) for row in found["rows"]}
    assert ("maps", "2-shot", "per token") in asked
    assert ("2D+", "1-shot", "exact") in asked
    assert ("traces", "-", "clean bpb") in asked
    page = (run / "report.html").read_text()
    assert 'id="ladder"' in page


def test_a_size_that_is_stopped_goes_on_and_ends_the_same(run, recipe, tmp_path, monkeypatch):
    from etude.train import stage as stages

    plain = stages.Interrupt.__call__
    calls = []

    def asked(self):
        calls.append(1)
        return len(calls) == 5 or plain(self)

    monkeypatch.setattr(stages.Interrupt, "__call__", asked)
    with pytest.raises(Stopped):
        train(recipe, out=tmp_path / "again", until="middle")
    train(recipe, out=tmp_path / "again", until="middle")
    for name in ("small", "middle"):
        one = load(run / "stages" / name / "checkpoint").state_dict()
        two = load(tmp_path / "again" / "stages" / name / "checkpoint").state_dict()
        assert all(torch.equal(one[k], two[k]) for k in one)
