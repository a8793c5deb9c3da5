"""What pairs and teachers cost, before anything runs."""

import pytest

from etude import arch
from etude.errors import EtudeError
from etude.models.describe import by_stage, planned
from etude.recipe import plan
from etude.recipe.identity import identities
from etude.recipe.load import check, parents, resolve

MODEL = {"family": "glm45", "size": "mini"}
RATE = 1e9


def made(*stages, fresh=256):
    text = {"data": {"mix": {"traces": 1}}, "tokens": 1000}
    big = {"stage": "pretrain", "name": "big", "fresh": {"hidden_size": fresh}} | text
    small = {"stage": "pretrain", "name": "small", "from": "model"} | text
    return resolve(check({"recipe": "r", "model": MODEL, "stages": [big, small, *stages]}))


def row(stage, **more):
    recipe = made(stage, **more)
    return plan.cost(recipe, planned(recipe), RATE, others=by_stage(recipe))[-1]


TEACH = {"teachers": [{"stage": "big", "tasks": {"rev": {}}}], "steps": 10}


def distill(**more):
    return {"stage": "distill"} | TEACH | more


def test_a_teachers_passes_and_weights_are_counted():
    small, big = (row(distill(), fresh=size) for size in (128, 256))
    net = by_stage(made(distill()))["big"]
    assert big.flops > small.flops
    assert big.memory - small.memory > arch.count(net).trunk  # 4 bytes each, less the smaller one's
    text = row(distill(form="text", prompts=8))
    assert text.memory < big.memory and text.tokens == big.tokens


def test_more_of_its_own_answers_are_more_sampling():
    flops = [row(distill(on_policy=share, prompts=1)).flops for share in (0.0, 0.5, 1.0)]
    assert flops == sorted(flops) and len(set(flops)) == 3
    assert "160 of its own" in row(distill()).note


def test_pairs_count_both_answers_and_a_reference_its_pass():
    pairs = {"tasks": {"rev": {}}, "count": 100, "held_out": 10, "length": 64}
    stage = {"stage": "preference", "pairs": pairs, "steps": 5, "batch": {"rows": 4}}
    found = row(stage)
    assert found.tokens == 2 * 64 * 4 * 5
    free = row(stage | {"loss": {"kind": "simpo"}})
    assert found.flops > free.flops
    asked = row(stage | {"pairs": pairs | {"kind": "attempts"}})
    assert "440 answers sampled" in asked.note


def test_sampled_distillation_costs_its_teachers_pass():
    rl = {"stage": "rl", "environments": [{"name": "rev"}], "steps": 3}
    plain, taught = row(rl), row(rl | {"distill": {"teacher": "big"}})
    assert taught.flops > plain.flops and taught.memory > plain.memory


def test_a_stage_stands_on_all_that_it_learns_from():
    stage = {
        "stage": "preference",
        "pairs": {"tasks": {"rev": {}}, "kind": "attempts", "of": "big"},
    }
    recipe = made(stage | {"reference": "model", "steps": 1}, distill(**{"from": "small"}))
    preference, student = recipe.stages[-2:]
    assert parents(preference) == ("small", "big", "model")
    assert parents(student) == ("small", "big")
    other = made(
        stage | {"reference": "model", "steps": 1}, distill(**{"from": "small"}), fresh=192
    )
    pair = identities(recipe), identities(other)
    assert pair[0]["small"] == pair[1]["small"]
    assert all(pair[0][name] != pair[1][name] for name in ("preference", "distill"))


def test_the_stage_after_a_reward_model_starts_from_the_policy_before_it():
    pairs = {"pairs": {"tasks": {"rev": {}}}, "steps": 1}
    recipe = made({"stage": "reward_model"} | pairs, {"stage": "preference"} | pairs)
    assert [stage.start for stage in recipe.stages[-2:]] == ["small", "small"]
    with pytest.raises(EtudeError, match="names stage 'reward_model', a reward model"):
        made({"stage": "reward_model"} | pairs, {"stage": "eval", "of": ["reward_model"]})


def test_a_teacher_that_is_nowhere_is_named_before_anything_runs():
    teacher = [{"path": "nowhere/at/all", "tasks": {"rev": {}}}]
    with pytest.raises(EtudeError, match="nowhere/at/all"):
        by_stage(made(distill(teachers=teacher)))
