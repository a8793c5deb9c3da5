"""A recipe that cannot work is refused before anything runs, whatever is wrong with it."""

import copy
import random

import pytest

from etude.data.check import check_names
from etude.errors import EtudeError
from etude.models.describe import describe, own_vocab
from etude.recipe.fit import check_fit
from etude.recipe.load import check, load, read_yaml, resolve, shipped
from etude.recipe.plan import cost, table

NAMES = [
    ("pretrain.data.mix={tracs: 1}", "pretrain.data.mix: set tracs: no such set"),
    ("midtrain.data.mix={general: 1}", "midtrain.data.mix: set general: no such set"),
    ("sft.data.tasks={revv: {}}", "sft.data.tasks: task revv: no such family"),
    ("sft.data.tasks={rev: {levels: {7: 1}}}", "sft.data.tasks: task rev: level 7"),
    ("rl.environments=[{name: rew}]", "did you mean rev?"),
    ("rl.environments=[{name: 'rg:nothing'}]", "reasoning-gym has no such generator"),
    ("unify.data.replay_mix={tracs: 1}", "did you mean traces?"),
    ("unify.samples_of.0.tasks={revv: {}}", "unify.samples_of: task revv"),
    ("eval.probes={rev: {levels: [9]}}", "eval.probes: task rev: level 9, expected 0 to 2"),
    ("eval.domains=[traces, agents]", "eval.domains: set agents: no such set"),
]


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize(("override", "told"), NAMES, ids=[name for name, _ in NAMES])
def test_a_name_that_nothing_bears_is_told_before_the_first_stage(
    etude, recipe, tmp_path, verb, override, told
):
    assert told in etude(verb, recipe, override).error(code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_bfloat16_on_one_cpu_is_refused_by_the_plan_and_by_the_run(
    etude, recipe, tmp_path, monkeypatch, device
):
    monkeypatch.setattr("etude.parallel.launch.has_gpu", lambda: False)
    overrides = ["dtype=bfloat16", f"device={device}"]
    for verb in ("plan", "train"):
        told = etude(verb, recipe, *overrides).error(code=2)
        assert told.startswith("dtype: bfloat16, but one process on a CPU multiplies in float32")
    assert not list(tmp_path.iterdir())
    assert etude("plan", recipe, *overrides, "--devices", "2", "--rate", "1e9").code == 0
    other = etude("plan", recipe, *overrides, "--rate", "1e14")  # of another machine
    assert other.code == (0 if device == "auto" else 2)


def test_a_folder_that_is_not_there_stops_a_run_but_not_its_plan(etude, recipe, tmp_path):
    override = "midtrain.data.mix={'folder:texts': 1}"
    assert etude("plan", recipe, override, "--rate", "1e9").code == 0
    told = etude("train", recipe, override).error(code=2)
    assert told.startswith("midtrain.data.mix: texts: no such folder")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.pdf").write_bytes(b"")
    assert "holds 1 files of other kinds" in etude("train", recipe, override).error(code=2)


VALUES = [
    ("pretrain.data.length=-3", "pretrain.data.length: -3"),
    ("pretrain.tokens=3x", "pretrain.tokens: '3x'"),
    ("pretrain.optimizer.kind=adam", "did you mean adamw?"),
    ("pretrain.optimizer.learning_rate=nan", "pretrain.optimizer.learning_rate"),
    ("rl.steps=1e400", "rl.steps: inf"),
    ("rl.steps.count=3", "rl.steps"),
    ("eval.of=[rll]", "eval: names stage 'rll', which does not exist; did you mean rl?"),
    ("eval.stage=[eval]", "stages.5"),
    ("model.config.num_experts_per_tok=9", "9, expected 1 to 4"),
    ("seed=-1", "seed: -1"),
    ("seed=99999999999", "seed: 99999999999"),
    ("recipe=../../elsewhere", "recipe: '../../elsewhere'"),
    ("eval.name=../up", "stages.../up: '../up', expected letters"),
    ("device=gpu", "device: 'gpu'"),
    ("log=[wandbb]", "log.0: unknown 'wandbb'; did you mean wandb?"),
    ("steps", "steps: is not an override"),
]


@pytest.mark.parametrize(("override", "told"), VALUES, ids=[name for name, _ in VALUES])
def test_a_value_that_cannot_be_is_told_with_its_key(etude, recipe, tmp_path, override, told):
    assert told in etude("train", recipe, override).error(code=2)
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("stages"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"recipe: x\nmodel: [1", "mine.yaml:2: is not YAML"),
        (b"\xff\xfe\x00", "mine.yaml: cannot be read (not UTF-8 text)"),
        (b"- 1\n", "mine.yaml: is not a mapping"),
        (b"", "mine.yaml: is not a mapping"),
        (b"recipe: !!python/object/apply:os.mkdir [made]", "mine.yaml:1: is not YAML"),
        (b"recipe: x\nmodel: {family: glm45}\nstages: [3]", "stages.0: 3"),
        (b"recipe: x\nmodel: {family: glm54}\nstages: [{stage: eval, of: [model]}]", "glm54"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(etude, tmp_path, content, told):
    (tmp_path / "mine.yaml").write_bytes(content)
    assert told in etude("plan", "mine.yaml").error(code=2)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "glm45_quick", "--devices", "0"), "--devices"),
        (("plan", "glm45_quick", "--rate", "-1"), "--rate"),
        (("convert", "here", "there", "--shard-gb", "0"), "--shard-gb"),
        (("show", "runs/nothing"), "runs/nothing: no such folder, expected a checkpoint"),
        (("show", "."), ".: holds no config.json"),
        (("show", "glm45-"), "glm45 size: '', expected one of full"),
        (("show", "native"), "family: 'native', expected one of glm45"),
        (("show", "recipes", "mine"), "show recipes: mine behind it, expected nothing more"),
        (("show", "stage", "rl", "--match", "flops"), "show stage: --match flops behind it"),
        (("show", "glm45-tiny", "--match", "flops"), "model: match needs a mixer, ffn, router"),
        (("bench", "tarin"), "did you mean train?"),
        (("bench", "--repeats", "0"), "--repeats"),
        (("bench", "--threads", "-1"), "--threads"),
        (("chat", "here", "--temperature", "-1"), "--temperature"),
        (("chat", "here", "--temperature", "nan"), "--temperature"),
        (("chat", "here", "--max-tokens", "0"), "--max-tokens"),
        (("train", "glm45_quick", "device=mps"), "device: 'mps', expected auto, cpu, cuda"),
        (("train", "glm45_quick", "model={path: x, config: {n: 1}}"), "model: config changes"),
    ],
)
def test_an_argument_out_of_range_is_told(etude, arguments, told):
    assert told in etude(*arguments).error(code=2)


@pytest.mark.parametrize("verb", ["train glm45_quick", "bench flops"])
def test_a_file_in_the_place_of_a_folder_is_told_before_the_work(etude, tmp_path, verb):
    (tmp_path / "file").write_text("kept")
    assert "'file' is a file" in etude(*verb.split(), "--out", "file").error(code=2)


def test_parts_of_a_checkpoint_cannot_be_swapped(etude, published):
    told = etude("show", published, "model.mixer=lightning").error(code=2)
    assert "is a folder of its own, expected a recipe or a name such as glm45-tiny" in told


ENVIRON = [
    ({"WORLD_SIZE": "two"}, "environment: WORLD_SIZE: 'two', expected a whole number, 1 or more"),
    ({"WORLD_SIZE": "0"}, "environment: WORLD_SIZE: '0'"),
    ({"RANK": "x"}, "environment: RANK: 'x', expected a whole number, 0 or more; unset it"),
    ({"LOCAL_RANK": "-1"}, "environment: LOCAL_RANK: '-1'"),
]


@pytest.mark.parametrize(("variables", "told"), ENVIRON)
def test_a_variable_of_the_launcher_that_is_no_number_is_told(
    etude, recipe, tmp_path, monkeypatch, variables, told
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert told in etude("train", recipe).error(code=2)
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_is_none_is_told_and_nothing_is_written(etude, published, tmp_path):
    told = etude("convert", published, "there", "--dtype", "cuda").error(code=2)
    assert told.startswith("dtype: 'cuda', expected one of float32")
    assert not list(tmp_path.iterdir())


WILD = (None, True, 0, -1, 2.5, 1e30, float("nan"), "", "x", "2M", [], [1], {}, {"a": 1}, {2: 1})
WILD += ([None], {"kind": "x"}, {"stage": []}, {"name": 3}, "rl", "model")


def places(node, path=()):
    yield path
    items = {dict: dict.items, list: enumerate}.get(type(node), lambda _: ())
    for key, below in items(node):
        yield from places(below, (*path, key))


def change(raw, rng):
    """Replace, misspell, drop, add or wrap one value anywhere."""
    *above, last = rng.choice([path for path in places(raw) if path])
    node = raw
    for key in above:
        node = node[key]
    how = rng.choice(["replace", "drop", "add", "wrap", "misspell"])
    if how == "drop":
        del node[last]
    elif how == "wrap":
        node[last] = [node[last]]
    elif how == "replace" or isinstance(node, list):
        node[last] = copy.deepcopy(rng.choice(WILD))
    elif how == "misspell":
        node[str(last)[:-1]] = node.pop(last)
    else:
        node[rng.choice(["x", 3, "stage", "name", "kind", "from"])] = rng.choice(WILD)


@pytest.mark.parametrize("name", ["glm45_quick", "glm45_small"])
def test_a_recipe_changed_at_random_is_planned_or_refused_with_one_line(name):
    raw = read_yaml(shipped()[name].read_text(), name)
    refused = 0
    for seed in range(120):
        rng, mine = random.Random(seed), copy.deepcopy(raw)
        for _ in range(rng.choice([1, 1, 2])):
            change(mine, rng)
        try:
            made = resolve(check(mine))
            decoder = describe(made.model, vocab=own_vocab(made))
            check_fit(made, decoder)
            check_names(made, ready=False)
            table(made, decoder, cost(made, decoder, 1e11))
        except EtudeError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert 60 < refused < 120  # neither all nor none of them are refused


def test_an_override_changed_at_random_is_taken_or_refused_with_one_line(recipe):
    raw = read_yaml(recipe.read_text(), "whole")
    keys = [".".join(map(str, path)) for path in places(raw) if path]
    rng, taken = random.Random(0), 0
    for _ in range(60):
        key = rng.choice(keys).replace("stages.3", "rl")
        key += rng.choice(["", "", "", ".x", ".0", ".-1", "..", "x"])
        value = rng.choice(["1", "x", "{", "[1]", "{a: 1}", '"', "a: b: c", "2M", "*a", "1e999"])
        try:
            load(str(recipe), [key + rng.choice(["=", "=", "=", ""]) + value])
            taken += 1
        except EtudeError as error:
            assert "\n" not in str(error)
    assert 0 < taken < 60
