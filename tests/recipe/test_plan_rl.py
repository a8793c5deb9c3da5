"""Rollouts cost what their bytes and products cost, and recurrent mixers pay less by length."""

from dataclasses import replace

import pytest

from etude import arch
from etude.recipe import plan_rl
from etude.recipe.load import check, resolve
from tests.recipe.test_plan import DENSE, MODEL, RAW

LIGHTNING = arch.Residual(arch.Lightning(heads=4, head_dim=32))
FLAT = replace(MODEL, layers=((LIGHTNING, DENSE),) * 2)


def stage(**rollout):
    raw = {**RAW, "stages": [dict(RAW["stages"][1], rollout=RAW["stages"][1]["rollout"] | rollout)]}
    return resolve(check(raw)).stages[0]


def test_a_step_reads_all_weights_once_and_each_rollouts_memory():
    found = plan_rl.rl_cost(stage(), MODEL, 1e9, 1e9)
    counts = arch.count(MODEL)
    wanted = 2 * counts.active_head + 8 * arch.cache_bytes(MODEL, plan_rl.PROMPT + 2)
    assert found.concurrent == 8 and found.usual.context == plan_rl.PROMPT + 2
    assert found.usual.read == wanted
    assert found.tokens == 3 * 8 * 5


def test_time_is_that_of_the_slower_of_bytes_and_products():
    slow = plan_rl.rl_cost(stage(), MODEL, 1e15, 1e6).usual
    assert slow.seconds == pytest.approx(slow.read / (1e6 * plan_rl.USED))
    busy = plan_rl.rl_cost(stage(), MODEL, 1e6, 1e15).usual
    assert busy.seconds == pytest.approx(busy.flops / (1e6 * plan_rl.PRODUCTS))


def test_attention_pays_for_length_and_lightning_does_not():
    short, long = ({"max_tokens": n, "prompts": 32, "per_prompt": 8} for n in (1_000, 100_000))
    grown = {
        name: plan_rl.rl_cost(stage(**long), model, 1e12, 1e9).longest.seconds
        / plan_rl.rl_cost(stage(**short), model, 1e12, 1e9).longest.seconds
        for name, model in (("attention", MODEL), ("lightning", FLAT))
    }
    assert grown["lightning"] == 1 and grown["attention"] > 50
    share = [plan_rl.rl_cost(stage(**long), m, 1e12, 1e9).share for m in (MODEL, FLAT)]
    assert share[1] < share[0] < 1


def test_few_tokens_read_few_experts_and_many_read_all():
    expert = arch.MLP(hidden=64)
    sparse = arch.Residual(arch.MoE(expert=expert, experts=8, active=2, router=arch.Router()))
    model = replace(MODEL, layers=((MODEL.layers[0][0], sparse),))
    one, many = (plan_rl.weights_read(model, rows) for rows in (1, 10_000))
    counts = arch.count(model)
    assert one == pytest.approx(counts.active_head)
    assert many == pytest.approx(counts.active_head + counts.parts["experts"] * 6 / 8)


def test_devices_share_the_time():
    one, two = (plan_rl.rl_cost(stage(), MODEL, 1e9, 1e9, devices=n) for n in (1, 2))
    assert two.training_seconds == one.training_seconds / 2
    assert two.generation_seconds == pytest.approx(one.generation_seconds / 2)


def test_the_text_names_stage_share_and_both_steps():
    text = plan_rl.told([plan_rl.rl_cost(stage(), MODEL, 1e9, 1e9)])
    assert text.startswith("rl: 24 rollouts, 8 at once, 120 tokens sampled")
    assert "of the time is generation" in text and text.count("a decode step behind") == 2
