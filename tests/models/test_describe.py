"""A name, a folder or a recipe's model as a description, without a tensor."""

import json

import pytest

from etude.errors import EtudeError
from etude.models.describe import behind, describe, from_folder, named, own_vocab
from etude.models.table import size
from etude.recipe.load import load
from etude.recipe.model import Model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text(json.dumps(size("glm45", "tiny")))
    return tmp_path / "one"


@pytest.fixture
def run(folder, tmp_path):
    home = tmp_path / "run" / "stages" / "sft"
    home.mkdir(parents=True)
    folder.rename(home / "checkpoint")
    (tmp_path / "run" / "run.json").write_text('{"last": "sft"}')
    return tmp_path / "run"


def test_a_family_alone_is_its_released_size():
    assert named("glm45") == describe(Model(family="glm45", size="full"))
    assert named("glm45-tiny") == describe(Model(family="glm45"))
    assert named("glm45").vocab == 151_552


def test_a_folder_and_a_run_are_described_by_their_config(folder, request):
    tiny = named("glm45-tiny")
    assert named(str(folder)) == from_folder(folder) == describe(Model(path=str(folder))) == tiny
    run = request.getfixturevalue("run")
    assert named(str(run)) == from_folder(run) == tiny
    assert behind(run) == run / "stages" / "sft" / "checkpoint"


def test_a_recipe_changes_fields_and_brings_its_vocabulary():
    model = Model(family="glm45", size="mini", config={"num_hidden_layers": 7})
    assert len(describe(model).layers) == 7
    assert describe(model, vocab=300).vocab == 300
    wider = Model(family="glm45", config={"vocab_size": 900})
    assert describe(wider, vocab=300).vocab == 900  # what the recipe says itself goes first


def test_a_vocabulary_is_the_recipes_own_unless_it_reads_one():
    assert own_vocab(load("glm45_quick")) == load("glm45_quick").tokenizer.vocab
    assert own_vocab(load("glm45_quick", ["tokenizer.path=somewhere"])) is None
    assert own_vocab(load("glm45_quick", ["model={path: somewhere}"])) is None


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: named("glm54"), "did you mean glm45?"),
        (lambda: named("glm45-tny"), "did you mean tiny?"),
        (lambda: named("runs/none"), "runs/none: no such folder"),
        (lambda: describe(Model(family="glm45", config={"hiden_size": 3})), "did you mean hidden"),
        (
            lambda: describe(Model(family="glm45", config={"zzz": 3})),
            "known: architectures, attention_bias",
        ),
        (lambda: describe(Model(path="no/such/folder")), "no/such/folder: no such folder"),
        (
            lambda: describe(Model(family="nemotron3", config={"hybrid_override_pattern": "MX"})),
            "model.config: hybrid_override_pattern: 'X' at place 1",
        ),
    ],
)
def test_what_does_not_exist_is_answered_with_the_nearest(ask, told):
    with pytest.raises(EtudeError) as caught:
        ask()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ('{"last": null}', "this run has finished no stage; train it first"),
        ("[]", "run.json: is not about a run"),
        ("{", "run.json: is not JSON"),
        ('{"last": "rl"}', "rl/checkpoint/config.json: no such file"),
    ],
)
def test_a_run_without_a_checkpoint_says_why(run, about, told):
    (run / "run.json").write_text(about)
    with pytest.raises(EtudeError, match=told):
        from_folder(run)
