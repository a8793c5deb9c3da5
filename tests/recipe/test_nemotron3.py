"""The recipes of Nemotron 3: every stage before reinforcement learning, numbers of the reports."""

import pytest

from etude import arch
from etude.models.describe import by_stage
from etude.optim.schedule import factor
from etude.recipe.load import load
from tests.recipe.whole import check_planned, stages

PAPERS = ("nemotron3_paper", "nemotron3_super_paper", "nemotron3_ultra_paper")
SIZES = ("nemotron3_quick", "nemotron3_tiny", "nemotron3_small", *PAPERS)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_every_stage_before_reinforcement_learning_and_can_be_planned(name):
    recipe = load(name)
    kinds = [stage.stage for stage in recipe.stages]
    assert [k for k in dict.fromkeys(kinds) if k != "eval"] == ["pretrain", "midtrain", "sft"]
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
