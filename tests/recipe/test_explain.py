"""What a stage can hold, told from its classes; and where in a recipe a complaint belongs."""

from dataclasses import fields

import pytest
from pydantic import ValidationError

from etude.errors import EtudeError
from etude.recipe.explain import describe_stage, explain, names
from etude.recipe.load import RECIPE
from etude.recipe.stages import KINDS, Recipe

TEXT = {"stage": "pretrain", "data": {"mix": {"general": 1}}, "tokens": "2M"}
RL = {"stage": "rl", "name": "hard", "environments": [{"name": "rev"}], "steps": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_stage_is_told_with_what_it_means(kind):
    lines = describe_stage(kind).splitlines()
    assert lines[0].startswith(f"stage: {kind}   ") and lines[0].endswith(".")
    rows = [line.split(None, 1) for line in lines[2:]]
    assert [row[0] for row in rows] == [name for name in names(KINDS[kind]) if name != "stage"]
    assert all(len(line) > 45 for line in lines[2:]), "a key without a meaning"


def test_a_key_is_told_as_it_is_written_with_its_default():
    told = {line.split()[0]: line for line in describe_stage("unify").splitlines()[2:]}
    assert "none" in told["from"] and "start" not in told
    assert told["tokens"].split()[1] == "(needed)"
    assert told["drop_short"].split()[1] == "0.5"
    assert told["optimizer"].split()[1] == "muon"
    assert "{}" not in "".join(told.values())


def test_a_kind_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(
        EtudeError, match="stage 'pretrian': no such kind, .* did you mean pretrain"
    ):
        describe_stage("pretrian")


def test_keys_are_those_of_the_file_and_of_no_other_thing():
    assert "from" in names(KINDS["sft"]) and "start" not in names(KINDS["sft"])
    assert names(Recipe) == [f.name for f in fields(Recipe)]
    assert names(int) == []


CASES = [
    ({}, "recipe: is missing"),
    ({"stage": []}, "stage: no such field; did you mean stages?"),
    ({"model": {"famly": "glm45"}}, "model.famly: no such field; did you mean model.family?"),
    ({"model": {}}, "model: give either family (with size) or path"),
    ({"stages": [TEXT | {"tokns": 3}]}, "pretrain.tokns: no such field; did you mean pretrain.tok"),
    (
        {"stages": [TEXT | {"stage": "pretrian"}]},
        "pretrian.stage: unknown 'pretrian'; did you mean",
    ),
    ({"stages": [TEXT, RL | {"steps": "x"}]}, "hard.steps: 'x': Input should be a valid integer"),
    ({"stages": [RL | {"environments": [{"nme": 1}]}]}, "hard.environments.0.nme: no such field"),
    ({"stages": [RL | {"environments": []}]}, "hard.environments"),
    ({"stages": [RL | {"rollout": {"per_prompt": 1}}]}, "hard: rollout.per_prompt is 1"),
    (
        {"stages": [TEXT | {"optimizer": {"kind": "adam"}}]},
        "pretrain.optimizer.kind: unknown 'adam'",
    ),
    (
        {"stages": [TEXT | {"optimizer": {"kind": "muon", "momentm": 1}}]},
        "pretrain.optimizer.momentm: no such field; did you mean pretrain.optimizer.momentum?",
    ),
    (
        {"stages": [TEXT | {"batch": {"rows": 2, "ramp_from": 4}}]},
        "pretrain.batch: ramp_from 4",
    ),
    ({"stages": [TEXT | {"data": {"mix": {"general": -1}}}]}, "pretrain.data.mix.general: -1"),
    ({"stages": [{"stage": "rl"}]}, "rl.environments: is missing"),
    ({"stages": [7]}, "stages.0: 7"),
    ({"stages": {"a": 1}}, "stages: dict"),
]


@pytest.mark.parametrize(("change", "told"), CASES, ids=[told[:40] for _, told in CASES])
def test_a_complaint_stands_where_the_user_wrote_the_mistake(change, told):
    raw = {"recipe": "small", "model": {"family": "glm45"}, "stages": [TEXT]} | change
    if not change:
        del raw["recipe"]
    with pytest.raises(ValidationError) as caught:
        RECIPE.validate_python(raw)
    assert str(explain(raw, caught.value)).startswith(told)
