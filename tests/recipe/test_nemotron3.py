"""The recipes of Nemotron 3: every stage, with the numbers of the reports."""

import pytest

from etude import arch
from etude.models.describe import by_stage
from etude.optim.schedule import factor
from etude.recipe.load import load
from tests.recipe.whole import check_planned, stages

PAPERS = ("nemotron3_paper", "nemotron3_super_paper", "nemotron3_ultra_paper")
ORDER = ["pretrain", "midtrain", "sft", "rl"]
SIZES = ("nemotron3_quick", "nemotron3_tiny", "nemotron3_small", *PAPERS)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_every_stage_and_can_be_planned(name):
    recipe = load(name)
    kinds = dict.fromkeys(stage.stage for stage in recipe.stages)
    assert [k for k in kinds if k in ORDER] == ORDER
    check_planned(recipe)


@pytest.mark.parametrize("name", SIZES)
def test_the_phases_change_in_one_run_and_long_rows_stand_among_short_ones(name):
    recipe = stages(name)
    first = recipe["pretrain"]
    (change,) = first.data.changes
    assert 0.75 <= change.at / first.tokens <= 0.94 and change.over == 0
    last = [stage for stage in recipe.values() if stage.stage == "midtrain"][-1]
    assert last.data.short and "document_qa" in last.data.mix
    assert last.schedule.shape == "constant"
    assert any(stage.data.split for stage in recipe.values() if stage.stage == "sft")


@pytest.mark.parametrize(
    ("name", "tokens", "change", "peak", "least", "step"),
    [
        ("nemotron3_paper", 25, 23.5, 1e-3, 1e-5, 25_165_824),
        ("nemotron3_super_paper", 25, 20, 4.5e-4, 4.5e-6, 25_165_824),
        ("nemotron3_ultra_paper", 20, 15, 2.5e-4, 2.5e-6, 25_165_824),
    ],
)
def test_pre_training_has_the_numbers_of_the_reports(name, tokens, change, peak, least, step):
    first = stages(name)["pretrain"]
    assert (first.tokens, first.data.changes[0].at) == (tokens * 10**12, change * 10**12)
    assert first.batch.rows * first.data.length == step
    rate = first.optimizer.learning_rate
    assert rate == peak
    ends = (first.tokens - 5 * 10**12, first.tokens)  # the decay takes the last 5T of each
    found = [rate * factor(first.schedule, seen, first.tokens) for seen in ends]
    assert found == pytest.approx([peak, least])
    assert (first.balance.bias_rate, first.balance.sequence_weight) == (1e-3, 1e-4)


def test_ultra_takes_eight_in_a_hundred_steps_of_24_million_tokens_at_4k():
    long = stages("nemotron3_ultra_paper")["long_context"]
    assert long.batch.rows * long.data.length == 25_165_824
    assert (long.data.short.length, long.data.short.share) == (4096, 0.08)


def test_super_takes_the_mean_over_tokens_first_and_over_conversations_then():
    recipe = stages("nemotron3_super_paper")
    assert [recipe[n].aggregate for n in ("sft", "sft_by_conversation")] == ["token", "sequence"]


def test_the_twin_of_tiny_has_attention_alone_and_within_a_hundredth_as_many_parameters():
    plans = by_stage(load("nemotron3_tiny"))
    kinds = {
        name: {part.op.kind for layer in plans[name].layers for part in layer}
        for name in ("pretrain", "pretrain_attention")
    }
    assert kinds["pretrain"] == {"mamba2", "attention", "moe"}
    assert kinds["pretrain_attention"] == {"attention", "moe"}
    counts = [arch.count(plans[name]) for name in kinds]
    sizes = [one.trunk + one.mtp for one in counts]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


@pytest.mark.parametrize("name", SIZES)
def test_reinforcement_learning_trains_no_router_and_moves_its_bias(name):
    learnt = [stage for stage in stages(name).values() if stage.stage == "rl"]
    assert len(learnt) >= 4
    for stage in learnt:
        assert stage.frozen == ("*.router.weight",)
        assert (stage.balance.bias_rate, stage.balance.sequence_weight) == (1e-3, 0)
        assert stage.optimizer.betas == (0.9, 0.999) and stage.optimizer.weight_decay == 0
    first = stages(name)["rlvr"]
    assert first.objective.kind == "masked_importance"
    assert first.objective.advantage.kind == "leave_one_out" and first.objective.advantage.std
    assert len(first.environments) > 2


@pytest.mark.parametrize(
    ("name", "stage", "prompts", "tries", "longest", "rate"),
    [
        ("nemotron3_paper", "rlvr", 128, 16, 49152, 3e-6),
        ("nemotron3_super_paper", "rlvr", 256, 16, 65536, 3e-6),
        ("nemotron3_super_paper", "swe_1", 64, 16, 131072, 1e-6),
        ("nemotron3_super_paper", "swe_2", 16, 32, 196608, 1e-6),
        ("nemotron3_super_paper", "rlhf", 128, 16, 49152, 1e-6),
        ("nemotron3_ultra_paper", "rlvr", 512, 16, 65536, 4e-6),
        ("nemotron3_ultra_paper", "mopd", 1024, 1, 196608, 2e-6),
    ],
)
def test_rollouts_have_the_numbers_of_the_reports(name, stage, prompts, tries, longest, rate):
    found = stages(name)[stage]
    rollout = found.rollout
    assert (rollout.prompts, rollout.per_prompt, rollout.max_tokens) == (prompts, tries, longest)
    assert found.optimizer.learning_rate == rate


@pytest.mark.parametrize("name", ["nemotron3_paper", "nemotron3_super_paper"])
def test_a_judge_trained_on_scores_rewards_in_a_circle_beside_length_control(name):
    recipe = stages(name)
    judge, short = recipe["rlhf"].rewards
    assert (judge.by, judge.mode, judge.verdict, judge.least) == ("genrm", "circle", "scores", 0.8)
    assert [one.name for one in recipe[judge.by].environments] == ["judge"]
    assert short.kind == "length_aware"


@pytest.mark.parametrize("name", ["nemotron3_quick", "nemotron3_tiny", "nemotron3_small"])
def test_each_domain_has_a_teacher_that_trained_on_it_alone(name):
    recipe = stages(name)
    student = recipe["mopd"]
    assert {one.name for one in student.environments} == set(student.distill.teachers)
    for domain, teacher in student.distill.teachers.items():
        assert domain in {one.name for one in recipe[teacher].environments}
        assert len(recipe[teacher].environments) < len(student.environments)
        assert recipe[teacher].steps == recipe["rlvr"].steps  # it is the control, too
    assert recipe["rlvr"].rollout.budget.share < 1
    asked = recipe["eval_rl"].probes["var"]
    assert len(asked.budgets) >= 3


def test_tiny_measures_reinforcement_learning_on_500_questions_beside_two_controls():
    measured = stages("nemotron3_tiny")["eval_rl"]
    assert measured.items >= 500
    assert {"sft_more", "teacher_reason", "teacher_words"} < set(measured.of)
