"""A file that changed behind a run's back is named, or made again; nothing is built on it."""

import gzip
import json
import shutil

import pytest
import torch

import etude as library
from etude.data.corpus import SIZES, content_key
from etude.data.documents import MANIFEST, Document, write_store
from etude.data.fetch import fetched
from etude.data.sources import embedded
from etude.files import read_json

NOT_JSON, OTHER = "{", "[]"

FILES = [
    ("run.json", NOT_JSON, "chat", "run.json: is not JSON"),
    ("run.json", OTHER, "chat", "run.json: is not about a run; the run's `etude train` writes it"),
    ("run.json", OTHER, "show", "run.json: is not about a run"),
    ("run.json", "{}", "show", "this run has finished no stage"),
    ("evals/rl.json", NOT_JSON, "eval", "evals/rl.json: is not JSON"),
    ("evals/rl.json", "{}", "eval", "evals/rl.json: is no evaluation"),
    ("stages/unify/checkpoint/config.json", OTHER, "show", "config.json: model_type: None"),
    ("stages/unify/checkpoint/config.json", OTHER, "chat", "config.json: has no model_type"),
]


@pytest.mark.parametrize(("file", "content", "verb", "told"), FILES)
def test_a_damaged_file_of_a_run_is_named(etude, copy, file, content, verb, told):
    (copy / file).write_text(content)
    assert told in etude(verb, copy).error(code=2)


def test_what_a_run_can_tell_from_its_stages_is_written_again(etude, recipe, whole, copy):
    for content in (NOT_JSON, OTHER, None):
        (copy / "run.json").unlink()
        if content:
            (copy / "run.json").write_text(content)
        assert etude("train", recipe, "--out", copy).code == 0
        assert read_json(copy / "run.json") == read_json(whole / "run.json")


STATE = [
    ("stages/rl/done.json", OTHER, "rl/done.json: is damaged; delete it, and the stage runs again"),
    ("stages/rl/done.json", NOT_JSON, "rl/done.json: is not JSON"),
    ("stages/unify/conversations.json", NOT_JSON, "unify/conversations.json: is not JSON"),
    ("stages/unify/conversations.json", OTHER, "unify/conversations.json: is damaged; delete it"),
    ("tokenizer/tokenizer.json", "{}", "tokenizer/tokenizer.json: cannot be read"),
]


@pytest.mark.parametrize(("file", "content", "told"), STATE)
def test_a_damaged_file_that_a_stage_needs_stops_the_run_before_it(
    etude, recipe, copy, file, content, told
):
    (copy / "stages" / "unify" / "done.json").unlink()
    (copy / file).write_text(content)
    assert told in etude("train", recipe, "--out", copy).error(code=2)


def test_damaged_figures_are_measured_again(etude, recipe, whole, copy):
    (copy / "evals" / "rl.json").write_text(OTHER)
    assert etude("train", recipe, "--out", copy).code == 0
    assert read_json(copy / "evals" / "rl.json") == read_json(whole / "evals" / "rl.json")


def test_notes_that_a_kill_cut_short_do_not_matter(etude, recipe, whole, copy):
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"stage": "rl", "st')
    (copy / "rollouts" / "rl.jsonl").write_text("{")
    (copy / "stages" / "rl" / "done.json").unlink()
    assert etude("train", recipe, "--out", copy).code == 0
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "rl"] == [1, 2]
    assert (copy / "rollouts" / "rl.jsonl").read_text().count("\n") == (
        (whole / "rollouts" / "rl.jsonl").read_text().count("\n")
    )


def test_a_damaged_token_set_is_named_and_made_again_once_deleted(
    etude, recipe, whole, tmp_path, monkeypatch
):
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    command = ("train", recipe, "--out", "run", "--until", "pretrain")
    assert etude(*command).code == 0
    [shard] = (tmp_path / "cache" / "tokens").glob("*/00000.ids")
    shard.write_bytes(b"\x01" + shard.read_bytes()[1:])
    (tmp_path / "run" / "stages" / "pretrain" / "done.json").unlink()
    told = etude(*command).error(code=1)
    assert told.startswith(str(shard)) and "delete the folder and build the data again" in told
    shutil.rmtree(shard.parent)
    assert etude(*command).code == 0
    expected, found = (
        library.load(run / "stages" / "pretrain" / "checkpoint").state_dict()
        for run in (whole, tmp_path / "run")
    )
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("harm", ["shard", "manifest"])
def test_a_damaged_corpus_is_named_with_the_way_to_make_it_again(
    etude, tmp_path, monkeypatch, harm
):
    """One that is made here, in the place where the real one of this machine would stand."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    key = content_key(SIZES["smoke"], embedded() + fetched(None))
    folder = tmp_path / "cache" / "corpus" / key
    folder.mkdir(parents=True)
    documents = [Document(f"text {i}", "general", "made", str(i), "MIT") for i in range(9)]
    about = {"key": key, "mixture": {"general": 1.0}, "copies": {}}
    write_store(folder, [("train", document) for document in documents], about)
    harmed = folder / MANIFEST if harm == "manifest" else next(folder.glob("*.gz"))
    harmed.write_bytes(b"[]" if harm == "manifest" else gzip.compress(b"other"))
    told = etude("data", "show", "smoke").error(code=1)
    assert told.startswith(str(folder))
    assert f"delete {folder} and run `etude data build` again" in told
