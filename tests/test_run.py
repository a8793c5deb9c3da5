"""A whole recipe, small enough for a test: each kind of stage runs, is skipped, resumes."""

import json
import shutil

import pytest
import torch

from etude.errors import EtudeError
from etude.evals.table import aggregate
from etude.files import read_json
from etude.models.checkpoint import load
from etude.run import folder_of, train
from etude.train.stage import Stopped

WHOLE = """
recipe: whole
model:
  family: glm45
  size: mini
  config:
    {hidden_size: 32, intermediate_size: 48, moe_intermediate_size: 16, num_hidden_layers: 2,
     n_routed_experts: 4, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16,
     num_nextn_predict_layers: 1}
tokenizer: {vocab: 320, sample_bytes: 20000}
corpus: {size: none, documents: 60}
save_every: 3
threads: 1
stages:
  - stage: pretrain
    data: {mix: {traces: 1}, length: 32}
    optimizer: {kind: muon, learning_rate: 1e-2}
    batch: {rows: 4}
    tokens: 1000
  - stage: midtrain
    data: {mix: {traces: 0.5, agent: 0.5}, length: 64, pack: best_fit}
    optimizer: {kind: muon, learning_rate: 1e-2}
    batch: {rows: 4}
    rope_theta: 1e6
    tokens: 600
  - stage: sft
    data: {tasks: {rev: {}}, items: 60, length: 64}
    optimizer: {kind: muon, learning_rate: 1e-2}
    batch: {rows: 4}
    tokens: 600
  - stage: rl
    environments: [{name: rev}]
    rollout: {prompts: 2, per_prompt: 2, max_tokens: 4}
    steps: 2
  - stage: unify
    from: midtrain
    samples_of: [{stage: rl, tasks: {rev: {}}}]
    prompts: 2
    tries: 1
    max_tokens: 4
    data: {tasks: {sum: {}}, items: 40, length: 96}
    optimizer: {kind: muon, learning_rate: 1e-2}
    batch: {rows: 4}
    tokens: 400
  - stage: eval
    of: [model, rl, unify]
    probes: {rev: {}}
    items: 2
    samples: 1
    pass_k: 1
    max_tokens: 4
    domains: [traces]
    documents: 2
    length: 32
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(WHOLE)
    return str(path)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return train(recipe, out=tmp_path_factory.mktemp("runs") / "whole")


def weights(folder, stage):
    return load(folder / "stages" / stage / "checkpoint").state_dict()


def test_a_run_leaves_a_checkpoint_per_stage_and_one_page(run):
    stages = read_json(run / "run.json")["stages"]
    assert [s["status"] for s in stages] == ["done"] * 6
    assert read_json(run / "run.json")["last"] == "unify"
    assert (run / "report.html").read_text().count("<svg") > 0
    assert load(run).arch == load(run / "stages" / "unify" / "checkpoint").arch
    assert {p.name for p in (run / "evals").iterdir()} == {"model.json", "rl.json", "unify.json"}


def test_the_rotary_base_changes_where_the_recipe_says_and_is_saved(run):
    thetas = [
        read_json(run / "stages" / s / "checkpoint" / "config.json")["rope_theta"]
        for s in ("pretrain", "midtrain", "sft")
    ]
    assert thetas == [1e4, 1e6, 1e6]


def test_every_training_stage_moves_the_weights_it_starts_from(run):
    starts = {"midtrain": "pretrain", "sft": "midtrain", "unify": "midtrain"}
    for stage, start in starts.items():
        before, after = weights(run, start), weights(run, stage)
        assert any(not torch.equal(before[k], after[k]) for k in before), stage


def test_a_finished_run_is_not_run_again(recipe, run, capsys):
    before = {p: p.stat().st_mtime_ns for p in (run / "stages").rglob("*.safetensors")}
    train(recipe, out=run)
    assert before == {p: p.stat().st_mtime_ns for p in (run / "stages").rglob("*.safetensors")}
    assert "etude chat" in capsys.readouterr().out


def test_the_table_of_a_folder_shows_what_the_last_recipe_in_it_measured(recipe, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    other = ["eval.of=[unify]", "unify.tokens=500"]
    train(recipe, other, out=folder)
    found = aggregate([folder])
    assert found["columns"] == ["unify", "gzip", "ngram"]
    assert found["left_out"] == [str(folder / "evals" / name) for name in ("model.json", "rl.json")]
    train(recipe, out=folder)
    assert aggregate([folder])["columns"][:3] == ["model", "rl", "unify"]


def test_an_evaluation_whose_figures_another_recipe_took_away_runs_again(recipe, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "evals" / "rl.json").unlink()
    train(recipe, out=folder)
    assert read_json(folder / "evals" / "rl.json") == read_json(run / "evals" / "rl.json")


def test_two_evaluations_of_one_stage_keep_their_figures_apart(recipe, run, tmp_path):
    more = "  - {stage: eval, name: again, of: [rl], probes: {sort: {}}, items: 2, samples: 0}"
    both = tmp_path / "both.yaml"
    both.write_text(f"{WHOLE}{more}\n")
    folder = shutil.copytree(run, tmp_path / "run")
    train(str(both), out=folder)
    kept = read_json(folder / "evals" / "rl.json")
    assert kept["rows"] == read_json(run / "evals" / "rl.json")["rows"]
    assert {row["task"] for row in read_json(folder / "evals" / "rl@again.json")["rows"]} == {
        "sort"
    }
    shown = aggregate([folder])
    assert shown["columns"][:3] == ["model", "rl", "unify"]
    assert {"rev", "sort"} <= {row["task"] for row in shown["rows"]}
    before = (folder / "evals" / "rl@again.json").stat().st_mtime_ns
    train(str(both), out=folder)
    assert (folder / "evals" / "rl@again.json").stat().st_mtime_ns == before


def test_a_changed_stage_runs_again_with_its_descendants_only(recipe, tmp_path):
    folder = train(recipe, out=tmp_path / "run", until="sft")
    first = {s: read_json(folder / "stages" / s / "done.json") for s in ("pretrain", "sft")}
    train(recipe, ["sft.tokens=700"], out=folder, until="sft")
    again = {s: read_json(folder / "stages" / s / "done.json") for s in ("pretrain", "sft")}
    assert again["pretrain"] == first["pretrain"]
    assert again["sft"]["tokens"] > first["sft"]["tokens"]
    train(recipe, ["pretrain.tokens=1100"], out=folder, until="pretrain")
    about = read_json(folder / "run.json")
    status = {stage["name"]: stage["status"] for stage in about["stages"]}
    assert status["sft"] == status["midtrain"] == "waiting"  # they stand on another pretrain
    assert about["last"] == "pretrain"


def test_a_run_stopped_in_the_middle_ends_bit_identical(recipe, run, tmp_path, monkeypatch):
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls == 4

    with monkeypatch.context() as patch:
        patch.setattr("etude.train.stage.Interrupt", lambda: _Asked(stop))
        with pytest.raises(Stopped, match="the same command goes on"):
            train(recipe, out=tmp_path / "run", until="midtrain")
    train(recipe, out=tmp_path / "run", until="midtrain")
    expected, found = weights(run, "midtrain"), weights(tmp_path / "run", "midtrain")
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [line["step"] for line in lines if line["stage"] == "pretrain"]
    assert steps == sorted(set(steps))


class _Asked:
    def __init__(self, stop):
        self.stop = stop

    def __enter__(self):
        return self.stop

    def __exit__(self, *_):
        return False


def test_an_unknown_set_is_answered_with_the_nearest(recipe, tmp_path):
    with pytest.raises(EtudeError, match="set tracs: no such set"):
        train(recipe, ["pretrain.data.mix={tracs: 1}"], out=tmp_path / "run")


def test_an_unknown_last_stage_is_answered_before_anything_runs(recipe, tmp_path):
    with pytest.raises(EtudeError, match="no such stage"):
        train(recipe, out=tmp_path / "run", until="sftt")
    assert not (tmp_path / "run").exists()


def test_another_seed_gets_a_folder_of_its_own(recipe):
    from etude.recipe.load import load as read

    assert folder_of(read(recipe), 0).name == "whole"
    assert folder_of(read(recipe, ["seed=2"]), 0).name == "whole-seed2"
