"""A recipe is read, overridden by name and resolved as a graph; every mistake is named."""

import pytest
import yaml

from etude.errors import EtudeError
from etude.recipe.identity import identities
from etude.recipe.load import (
    as_data,
    check,
    dump,
    load,
    parents,
    read_yaml,
    resolve,
    schema,
    shipped,
)
from etude.recipe.stages import Eval

RAW = {
    "recipe": "small",
    "model": {"family": "glm45"},
    "stages": [
        {"stage": "pretrain", "data": {"mix": {"general": 1}}, "tokens": "2M"},
        {"stage": "rl", "environments": [{"name": "rev", "levels": {0: 1}}], "steps": 3},
        {"stage": "eval", "of": ["pretrain", "rl"]},
    ],
}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RAW))
    return str(path)


def test_numbers_are_read_as_yaml_1_2_writes_them():
    read = read_yaml("{a: 3e-3, b: 1e6, c: .5, d: no, e: 010, f: true, g: 12:30}", "here")
    assert read == {"a": 3e-3, "b": 1e6, "c": 0.5, "d": "no", "e": 10, "f": True, "g": "12:30"}


def test_a_broken_file_is_answered_with_its_line():
    with pytest.raises(EtudeError, match=r"here:2: is not YAML"):
        read_yaml("a: 1\nb: [1", "here")


@pytest.mark.parametrize(
    ("text", "count"), [("2M", 2_000_000), ("1.5k", 1500), ("15T", 15 * 10**12), ("2e6", 2_000_000)]
)
def test_amounts_of_tokens_may_carry_a_unit(written, text, count):
    assert load(written, [f"pretrain.tokens={text}"]).stages[0].tokens == count


def test_an_override_addresses_a_stage_by_name_and_changes_only_that(written):
    plain, changed = load(written), load(written, ["rl.optimizer.learning_rate=3e-4", "seed=4"])
    assert changed.stages[1].optimizer.learning_rate == 3e-4
    assert changed.seed == 4
    assert changed.stages[0] == plain.stages[0]


def test_what_is_dumped_loads_back_equal(written, tmp_path):
    recipe = load(written, ["pretrain.tokens=3k"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(recipe))
    assert load(str(again)) == recipe


def test_each_stage_starts_from_the_training_stage_before_it():
    stages = [*RAW["stages"], {"stage": "sft", "data": {"tasks": {"rev": {}}}, "tokens": 10}]
    recipe = resolve(check({**RAW, "stages": stages}))
    assert [parents(s) for s in recipe.stages] == [
        ("model",),
        ("pretrain",),
        ("pretrain", "rl"),
        ("rl",),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.objetive.kind=ppo", "rl.objetive: no such field; did you mean rl.objective?"),
        ("rl.objective.kind=grop", "rl.objective.kind: unknown 'grop'; did you mean grpo?"),
        ("rl.environments.0.lvels=3", "did you mean rl.environments.0.levels?"),
        ("rll.steps=3", "rll: no such stage or key; did you mean rl?"),
        ("rl.steps=abc", "rl.steps: 'abc'"),
        ("rl.steps", "is not an override, expected key=value"),
        ("rl.optimizer.learnin_rate=3", "did you mean rl.optimizer.learning_rate?"),
        ("sede=3", "sede: no such field; did you mean seed?"),
        ("rl.from=foo", "rl: names stage 'foo', which does not exist"),
        ("model.family=null", "give either family (with size) or path"),
        ("pretrain.data.mix.general=-1", "pretrain.data.mix.general"),
        ("stages.0.stage=pretran", "unknown 'pretran'; did you mean pretrain?"),
        ("rl.optimizer.kind=sgd", "rl.optimizer.kind: unknown 'sgd'; known: adamw, muon"),
        ("eval.of=[rl, x]", "eval: names stage 'x', which does not exist"),
        ("rl.rollout.per_prompt=1", "rl: rollout.per_prompt is 1, but group compares the answers"),
        ("pretrain.from=rl", "names stage 'rl', which stands after it; move it up"),
        ("rl.name=pretrain", "stages.pretrain: is the name of two stages"),
    ],
)
def test_a_mistake_is_answered_with_its_place_and_the_nearest_name(written, override, message):
    with pytest.raises(EtudeError) as caught:
        load(written, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_nearest_shipped_one():
    with pytest.raises(EtudeError, match="did you mean glm45_quick"):
        load("glm45_quik")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid_and_measures_what_it_trains(name):
    recipe = load(name)
    assert recipe.recipe == name
    trained = {s.name for s in recipe.stages if not isinstance(s, Eval)}
    assert all(set(s.of) <= trained | {"model"} for s in recipe.stages if isinstance(s, Eval))
    assert check(yaml.safe_load(dump(recipe))) == recipe


def test_the_schema_knows_every_stage_and_written_keys():
    text = str(schema())
    assert "Midtrain" in text
    assert "'from'" in text
    assert as_data(load("glm45_quick"))["stages"][0]["from"] == "model"


def test_a_change_renames_a_stage_and_its_descendants_and_nothing_else(written):
    plain, changed = (
        identities(load(written, o)) for o in ([], ["rl.optimizer.learning_rate=3e-4"])
    )
    assert {name for name in plain if plain[name] != changed[name]} == {"rl", "eval"}
    other_seed = identities(load(written, ["seed=1"]))
    assert all(plain[name] != other_seed[name] for name in plain)


def test_a_stage_without_a_name_is_addressed_by_its_kind_beside_named_ones(tmp_path):
    more = [*RAW["stages"], {"stage": "eval", "name": "late", "of": ["rl"]}]
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**RAW, "stages": more}))
    recipe = load(str(path), ["eval.items=7", "late.items=8"])
    assert [s.items for s in recipe.stages if isinstance(s, Eval)] == [7, 8]
