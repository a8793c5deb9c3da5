"""The plan is arithmetic on recipe and description; nothing runs, nothing is allocated."""

import pytest

from etude import arch
from etude.recipe import plan
from etude.recipe.load import check, resolve

ATTEND = arch.Residual(
    arch.Attention(heads=4, kv_heads=2, head_dim=32, rope=arch.Rope(fraction=0.5))
)
DENSE = arch.Residual(arch.MLP(hidden=320))
MODEL = arch.Decoder(dim=128, vocab=1024, layers=((ATTEND, DENSE),) * 2)
RAW = {
    "recipe": "small",
    "model": {"family": "glm45"},
    "stages": [
        {"stage": "pretrain", "data": {"mix": {"general": 1}, "length": 128}, "tokens": "2M"},
        {
            "stage": "rl",
            "environments": [{"name": "rev"}],
            "steps": 3,
            "rollout": {"prompts": 4, "per_prompt": 2, "max_tokens": 10},
        },
        {"stage": "eval", "of": ["model", "rl"], "probes": {"rev": {}}, "items": 10, "samples": 1},
    ],
}


def rows(**changes):
    return plan.cost(resolve(check({**RAW, **changes})), MODEL, 1e9)


def test_text_costs_its_tokens_times_the_training_flops_of_a_token():
    first = rows()[0]
    assert first.tokens == 2_000_000
    assert first.flops == arch.train_flops(MODEL, 128) * 2_000_000
    assert first.seconds == first.flops / (1e9 * plan.TRAINING)


def test_rollouts_count_every_answer_once_for_sampling_and_once_for_training():
    second = rows()[1]
    assert second.tokens == 3 * 4 * 2 * (plan.PROMPT + 5)
    assert second.note == "3 steps"


def test_an_evaluation_asks_each_stage_greedily_and_by_sampling():
    third = rows()[2]
    assert third.tokens == 2 * 10 * (1 + 1) * (plan.PROMPT + 48)


def test_the_table_names_every_stage_and_the_sum():
    recipe = resolve(check(RAW))
    text = plan.table(recipe, MODEL, rows())
    assert all(stage.name in text for stage in recipe.stages)
    *_, whole, far = text.splitlines()
    assert whole.split()[:2] == ["in", "all"] and far.startswith("FLOPs per generated token")


def test_devices_share_time_and_weights_but_each_holds_its_own_activations():
    recipe = resolve(check(RAW))
    one, four = (plan.cost(recipe, MODEL, 1e9, devices=n) for n in (1, 4))
    assert [b.seconds * 4 for b in four] == pytest.approx([a.seconds for a in one])
    weights, passing = arch.held(MODEL, states=1), arch.activations(MODEL, one[0].micro)
    assert passing > weights  # the peak is in the pass, not in the step
    assert one[0].memory - four[0].memory == pytest.approx(weights * 3 / 4, abs=1)
    assert four[0].memory == pytest.approx(weights / 4 + passing, abs=1)


def test_the_rate_of_the_machine_is_a_positive_measurement():
    assert plan.machine_rate() > 1e6
