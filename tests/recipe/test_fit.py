"""What a model has no room for is refused before anything runs."""

import pytest

from etude import arch
from etude.errors import EtudeError
from etude.models.describe import length_key
from etude.recipe.fit import check_dtype, check_fit
from etude.recipe.load import load

MODEL = arch.Decoder(
    dim=8, vocab=1024, layers=((arch.Residual(arch.MLP(hidden=8)),),), max_length=4096
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mid_agent.data.length=4097", "mid_agent.data.length: 4097 tokens, expected at most 4096"),
        ("rl_hard.rollout.max_tokens=5000", "rl_hard.rollout.max_tokens: 5000"),
        ("eval.length=5000", "eval.length: 5000"),
        ("unify.data.length=5000", "unify.data.length: 5000"),
        ("tokenizer.vocab=2000", "tokenizer.vocab: 2000 tokens, expected at most 1024"),
    ],
)
def test_what_does_not_fit_is_named_with_its_limit(override, message):
    with pytest.raises(EtudeError) as caught:
        check_fit(load("glm45_quick", [override]), MODEL)
    assert message in str(caught.value)


KEYS = [("glm45_quick", "max_position_embeddings"), ("gpt3_quick", "n_positions")]


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_the_key_that_would_make_room_is_that_of_the_family(name, key):
    recipe = load(name, ["eval.length=5000"])
    assert length_key(recipe) == key
    with pytest.raises(EtudeError, match=f"or raise {key} in model.config to 5000"):
        check_fit(recipe, MODEL, key=key)
    assert length_key(load(name, ["model={path: somewhere}"])) is None
    with pytest.raises(EtudeError, match="the model's context; lower it$"):
        check_fit(recipe, MODEL)


def test_a_length_equal_to_the_context_fits():
    check_fit(load("glm45_quick", ["mid_agent.data.length=4096"]), MODEL)


@pytest.mark.parametrize(
    ("device", "gpu", "processes", "fits"),
    [
        ("cpu", True, 1, False),
        ("cpu:0", True, 1, False),
        ("cpu", False, 2, True),
        ("auto", False, 1, False),
        ("auto", True, 1, True),
        ("auto", False, 2, True),
        ("cuda", False, 1, True),  # that there is none is told when it is opened
    ],
)
def test_bfloat16_is_refused_where_one_process_on_a_cpu_trains(device, gpu, processes, fits):
    recipe = load("glm45_quick", ["dtype=bfloat16", f"device={device}"])
    if fits:
        check_dtype(recipe, processes=processes, gpu=lambda: gpu)
    else:
        with pytest.raises(EtudeError, match="dtype: bfloat16, but one process on a CPU"):
            check_dtype(recipe, processes=processes, gpu=lambda: gpu)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_other_dtypes_never_ask_for_a_gpu(dtype):
    recipe = load("glm45_quick", [f"dtype={dtype}"])
    check_dtype(recipe, processes=1, gpu=lambda: pytest.fail("asked"))
