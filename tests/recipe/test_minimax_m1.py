"""The recipes of MiniMax-M1: the reports' numbers in the large one, and all stages in each."""

from dataclasses import replace

import pytest

from etude import arch
from etude.errors import EtudeError
from etude.models.describe import planned
from etude.optim import schedule
from etude.recipe.curricula import Curriculum
from etude.recipe.load import load
from etude.recipe.plan import cost
from etude.rl.ramp import RampShares
from tests.recipe.whole import check_planned, stages

NAMES = ["minimax_m1_quick", "minimax_m1_tiny", "minimax_m1_small", "minimax_m1_paper"]
ORDER = ["base_constant", "base_reduced", "base_decay", "continued"]
STEPS = ["extend_32k", "extend_128k", "extend_512k", "extend_1m"]


@pytest.mark.parametrize("name", NAMES)
def test_every_size_has_every_stage_and_can_be_planned(name):
    recipe = load(name)
    found = [stage.name for stage in recipe.stages]
    wanted = [*ORDER, *STEPS, "cold_start", "eval", "critic", "rl_40k", "rl_80k", "eval_rl"]
    assert [stage for stage in found if stage in wanted] == wanted
    check_planned(recipe)


@pytest.mark.parametrize("name", NAMES)
def test_mathematics_and_code_are_about_six_in_ten_of_the_cold_start(name):
    tasks = stages(name)["cold_start"].data.tasks
    exact = ("sum", "var", "code", "rg:chain_sum", "rg:gsm_symbolic")
    share = sum(tasks[name].weight for name in tasks if name in exact)
    assert share / sum(mix.weight for mix in tasks.values()) == pytest.approx(0.6, abs=0.051)
    assert any(mix.reflect for mix in tasks.values())


@pytest.mark.parametrize("name", NAMES)
def test_each_mixture_begins_where_the_one_before_ended_and_balance_is_over_the_batch(name):
    found = stages(name)
    for before, after in zip([*ORDER, *STEPS], [*ORDER[1:], *STEPS], strict=False):
        assert found[after].data.mix == found[before].data.mixes[-1], after
    for stage in found.values():
        if stage.stage != "eval":
            assert stage.balance.bias_rate == stage.balance.sequence_weight == 0
            assert stage.balance.batch_weight > 0 and stage.balance.batch_form == "mean"


def test_the_papers_rates_and_batches_are_those_of_the_table():
    found = stages("minimax_m1_paper")
    first = found["base_constant"]
    marks = (0, 69e9, 790e9, 4.7e12)
    tokens = [8192 * schedule.rows(first.batch, int(mark)) for mark in marks]
    assert tokens == pytest.approx([16e6, 32e6, 64e6, 128e6], rel=1e-3)
    warm = schedule.factor(first.schedule, 4 * 10**9, first.tokens, batch=0)
    assert warm == pytest.approx(0.5)  # 500 steps of 16M tokens
    last = found["base_decay"]
    end = schedule.factor(last.schedule, last.tokens, last.tokens)
    assert last.optimizer.learning_rate * end == pytest.approx(3e-5, rel=1e-4)
    assert sum(found[name].tokens for name in ORDER[:3]) == 11.4e12
    more = found["continued"]
    for seen, rate in ((0, 8e-5), (2.5e12, 8e-5), (5e12, 4.4e-5), (7.5e12, 8e-6)):
        at = schedule.factor(more.schedule, int(seen), more.tokens)
        assert more.optimizer.learning_rate * at == pytest.approx(rate, rel=1e-3)
    stem = more.data.mixes[-1]
    assert 1 - stem["hub:HuggingFaceFW/fineweb-edu"] == pytest.approx(0.7)


def test_the_papers_context_grows_with_its_rotary_base():
    found = stages("minimax_m1_paper")
    long = [found[name] for name in ("base_128k", "base_512k", "base_1m")]
    assert [(s.data.length, s.tokens) for s in long] == [
        (131_072, 300e9),
        (524_288, 32e9),
        (1_048_576, 26e9),
    ]
    assert [found["base_constant"].rope_theta, *(s.rope_theta for s in long)] == [
        1e4,
        5e6,
        1e7,
        None,
    ]
    for stage in long:
        *_, last = stage.data.changes
        assert last.at == 0.8 * stage.tokens and last.mix["folder:texts/long_qa"] == 0.1


def test_a_loss_over_the_batch_of_a_step_that_is_cut_is_planned_with_a_further_forward_pass():
    whole, cut = (
        cost(recipe, planned(recipe), 1e12)[0].flops
        for recipe in (
            load("minimax_m1_quick"),
            load("minimax_m1_quick", ["base_constant.batch.micro=4"]),
        )
    )
    assert cut / whole == pytest.approx(4 / 3)


@pytest.mark.parametrize("name", NAMES)
def test_rules_reward_first_and_a_judge_that_must_earn_its_place_later(name):
    stage = stages(name)["rl_40k"]
    assert (stage.start, stage.objective.kind, stage.objective.aggregate) == (
        "cold_start",
        "cispo",
        "token",
    )
    assert stage.objective.weight_min == 0 and stage.objective.kl.beta == 0
    assert stage.optimizer.eps == 1e-15 and stage.rollout.dynamic and stage.rollout.repetition
    judge, long = stage.rewards
    assert (judge.kind, judge.by, judge.least, long.kind) == ("judge", "critic", 0.8, "overlong")
    ramp = RampShares(stage.curriculum.ramp, stage.environments, 30)
    assert judge.only == stage.curriculum.ramp.names
    assert ramp.share(0) == ramp.share(9) == 0 < ramp.share(15) < ramp.share(29) == 0.3


@pytest.mark.parametrize("name", NAMES)
def test_the_longer_run_has_other_problems_growing_windows_and_smaller_steps(name):
    first, second = stages(name)["rl_40k"], stages(name)["rl_80k"]
    sizes = second.curriculum.windows.sizes
    assert sizes[0] == first.rollout.max_tokens
    assert [size / sizes[0] for size in sizes] == pytest.approx(
        [1, 1.2, 1.4, 1.6, 1.8, 2], abs=0.01
    )
    assert second.difficulty.keep == "moderate" and second.environments != first.environments
    assert second.objective.aggregate == "token_and_sequence"
    assert second.objective.weight_max < first.objective.weight_max and second.clip < first.clip


def test_the_controls_of_tiny_differ_from_the_stage_in_one_thing_each():
    found = stages("minimax_m1_tiny")
    stage, grpo, rules = (found[name] for name in ("rl_40k", "rl_grpo", "rl_rules"))
    assert replace(grpo, name=stage.name, objective=stage.objective) == stage
    kept = {"rewards": stage.rewards[1:], "curriculum": Curriculum()}
    assert rules == replace(stage, name="rl_rules", environments=stage.environments[:-1], **kept)
    assert found["sft_more"].start == grpo.start == rules.start == "cold_start"
    assert found["eval_rl"].items >= 500


def test_changes_of_a_mixture_that_overlap_are_refused():
    change = "continued.data.changes=[{mix: {code: 1}, at: 5, over: 9}, {mix: {math: 1}, at: 7}]"
    with pytest.raises(EtudeError, match="begins before the one before it ends"):
        load("minimax_m1_quick", [change])


def test_the_softmax_twin_of_tiny_has_as_many_parameters():
    hybrid = planned(load("minimax_m1_tiny"))
    twin = planned(load("minimax_m1_tiny", ["model.mixer=attention", "model.match=params"]))
    sizes = [arch.count(decoder).trunk for decoder in (hybrid, twin)]
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.01)
    kinds = [{op.kind for op in arch.mixers(d.layers)} for d in (hybrid, twin)]
    assert kinds == [{"lightning", "attention"}, {"attention"}]
