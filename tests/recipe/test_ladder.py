"""Several sizes in one recipe, and the paper's schedule, batch and counts as a recipe says them."""

import pytest

from etude import arch
from etude.errors import EtudeError
from etude.models.describe import by_stage, compute, planned
from etude.optim import schedule
from etude.recipe import plan
from etude.recipe.fit import check_fit
from etude.recipe.identity import identities
from etude.recipe.load import check, dump, load, read, read_yaml, resolve

DATA = {"mix": {"general": 1}, "length": 64}
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 2, "d_head": 16}
RAW = {
    "recipe": "steps",
    "model": {"family": "gpt3", "size": "mini"},
    "stages": [
        {"stage": "pretrain", "name": "a", "fresh": SMALL, "data": DATA, "tokens": 1000},
        {"stage": "pretrain", "name": "b", "fresh": {}, "data": DATA, "tokens": 2000},
        {"stage": "midtrain", "name": "c", "data": DATA, "tokens": 500},
        {"stage": "midtrain", "name": "d", "from": "a", "data": DATA, "tokens": 300},
        {"stage": "eval", "of": ["a", "b", "c"], "domains": ["general"], "ladder": True},
    ],
}


def recipe():
    return resolve(check(RAW))


def test_each_fresh_stage_starts_anew_and_others_go_on_from_the_one_before():
    assert [s.start for s in recipe().stages[:4]] == ["model", "model", "b", "a"]
    plans = by_stage(recipe())
    assert plans["a"].dim == plans["d"].dim == 32
    assert plans["b"] == plans["c"] == planned(recipe())


def test_new_weights_cannot_follow_a_stage():
    stages = [*RAW["stages"][:1], {**RAW["stages"][1], "from": "a"}]
    with pytest.raises(EtudeError, match="cannot start from 'a'"):
        check({**RAW, "stages": stages})


def test_a_key_that_no_config_has_is_named_by_its_stage():
    stages = [{**RAW["stages"][0], "fresh": {"n_embed": 32}}]
    with pytest.raises(EtudeError, match=r"a\.fresh\.n_embed.*n_embd"):
        by_stage(resolve(check({**RAW, "stages": stages})))


def test_the_compute_of_a_stage_is_six_times_parameters_times_tokens_along_its_chain():
    small, large = (arch.count(by_stage(recipe())[name]).trunk for name in "ab")
    assert compute(recipe(), "a") == (small, 1000, 6 * small * 1000)
    assert compute(recipe(), "c") == (large, 2500, 6 * large * 2500)
    assert compute(recipe(), "d") == (small, 1300, 6 * small * 1300)


def test_the_plan_costs_each_stage_at_its_own_size():
    made, plans = recipe(), by_stage(recipe())
    rows = plan.cost(made, planned(made), 1e9, others=plans)
    assert rows[0].flops == arch.train_flops(plans["a"], 64) * 1000
    assert rows[1].flops == arch.train_flops(plans["b"], 64) * 2000
    assert "parameters" in rows[0].note
    assert rows[0].memory < rows[1].memory


def test_rows_are_held_against_the_context_of_their_own_size():
    short = {**SMALL, "n_positions": 32}
    made = resolve(check({**RAW, "stages": [{**RAW["stages"][0], "fresh": short}]}))
    check_fit(made, planned(made))
    with pytest.raises(EtudeError, match="at most 32"):
        check_fit(made, planned(made), by_stage(made))


def test_another_size_is_another_stage_and_those_behind_it_with_it():
    other = read(RAW | {"stages": [dict(s) for s in RAW["stages"]]}, ["a.fresh.n_embd=48"])
    one, two = identities(recipe()), identities(other)
    assert one["a"] != two["a"]
    assert one["d"] != two["d"]
    assert one["b"] == two["b"]


def test_a_ladder_is_written_down_and_read_back():
    assert resolve(check(read_yaml(dump(recipe()), ""))) == recipe()


def test_the_papers_learning_rate_warms_up_falls_and_stays():
    """Appendix B: linear over 375M tokens, cosine to 10 % at 260B, then constant to 300B."""
    stage = load("gpt3_paper").stages[0]

    def rate(tokens):
        return schedule.factor(stage.schedule, int(tokens), stage.tokens, batch=0)

    assert rate(187.5e6) == pytest.approx(0.5)
    assert rate(375e6) == pytest.approx(1.0)
    assert rate((260e9 + 375e6) / 2) == pytest.approx(0.55, abs=1e-6)  # half way down
    assert rate(260e9) == pytest.approx(0.1)
    assert rate(299e9) == pytest.approx(0.1)


def test_the_papers_batch_grows_from_32k_tokens_to_its_full_size():
    stage = load("gpt3_paper").stages[-2]
    tokens = [2048 * schedule.rows(stage.batch, int(seen)) for seen in (0, 6e9, 12e9, 200e9)]
    assert tokens[0] == 32_768
    assert tokens[1] == pytest.approx((32_768 + 3.2e6) / 2, rel=1e-2)
    assert tokens[2] == tokens[3] == pytest.approx(3.2e6, rel=1e-3)


def test_the_papers_ladder_has_the_parameters_and_compute_of_table_d1():
    """6 N D at 300B tokens; the table's own figures, rounded there to three digits."""
    made = load("gpt3_paper")
    vocab = 50257
    known = [2.25e20, 6.41e20, 1.37e21, 2.38e21, 4.77e21, 1.20e22, 2.31e22, 3.14e23]
    for stage, flops in zip(made.stages, known, strict=False):
        assert compute(made, stage.name, vocab=vocab)[2] == pytest.approx(flops, rel=6e-3)


@pytest.mark.parametrize("name", ["gpt3_quick", "gpt3_tiny", "gpt3_small", "gpt3_paper"])
def test_the_mixture_has_the_weights_of_table_2_2_and_the_rate_falls_with_size(name):
    made = load(name)
    trained = [stage for stage in made.stages if stage.stage == "pretrain"]
    rungs = [stage for stage in trained if not stage.name.startswith("control")]
    shares = {k: v for k, v in rungs[0].data.mix.items() if k != "maps"}
    assert sorted(shares.values()) in ([3, 8, 8, 22, 60], [3, 16, 22, 60])  # or the books as one
    assert {stage.data.mask for stage in rungs} == {"none"}
    assert all(stage.data == rungs[0].data for stage in rungs)
    rates = [stage.optimizer.learning_rate for stage in rungs]
    assert rates == sorted(rates, reverse=True)
    sizes = [arch.count(by_stage(made)[stage.name]).trunk for stage in rungs]
    assert sizes == sorted(sizes)
    assert len(sizes) >= 5
