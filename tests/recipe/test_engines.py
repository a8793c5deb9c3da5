"""`engine:` is one word or one of two maps; a mistake in it is named by its key."""

import pytest

from etude.errors import EtudeError
from etude.recipe.engines import Fleet, Ray, Remote
from etude.recipe.load import as_data, check, read
from etude.recipe.stages import Recipe
from tests.recipe.test_plan import RAW


def recipe(engine) -> Recipe:
    stage = dict(RAW["stages"][1], name="rl") | ({} if engine is None else {"engine": engine})
    return check({**RAW, "stages": [stage]})


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [
        (None, "local"),
        ("local", "local"),
        ({"url": "http://host:8000"}, Remote("http://host:8000")),
        (
            {"url": "https://h", "sync": "tensors", "shards": 8},
            Remote("https://h", sync="tensors", shards=8),
        ),
        ({"ray": {"workers": 4, "gpus": 0.5}}, Fleet(Ray(workers=4, gpus=0.5))),
    ],
)
def test_an_engine_is_read_and_written_back(engine, wanted):
    made = recipe(engine)
    assert made.stages[0].engine == wanted
    assert check(as_data(made)) == made


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("locale", r"rl\.engine: 'locale': expected local, \{url"),
        ({}, r"rl\.engine: .*expected local, \{url: \.\.\.\} or \{ray: \{\.\.\.\}\}"),
        ({"url": "host:8000"}, r"rl\.engine\.url: 'host:8000'"),
        ({"url": "http://h", "retires": 3}, r"did you mean rl\.engine\.retries"),
        ({"url": "http://h", "sync": "disk"}, r"rl\.engine\.sync: unknown 'disk'.*checkpoint"),
        ({"url": "http://h", "sync": "transfer", "server": "sglang"}, "sync transfer is vllm's"),
        ({"ray": {"worker": 2}}, r"did you mean rl\.engine\.ray\.workers"),
        ({"ray": {"workers": 0}}, r"rl\.engine\.ray\.workers: 0"),
        ({"ray": {}, "url": "http://h"}, r"rl\.engine\.ray: no such field"),
    ],
)
def test_a_mistake_is_named_by_its_key(engine, told):
    with pytest.raises(EtudeError, match=told):
        recipe(engine)


def test_an_override_changes_the_engine():
    raw = {**RAW, "stages": [dict(RAW["stages"][1], name="rl")]}
    made = read(raw, ["rl.engine={ray: {workers: 3}}"])
    assert made.stages[0].engine == Fleet(Ray(workers=3))
    assert read(raw, ["rl.engine.url=http://h"]).stages[0].engine == Remote("http://h")
