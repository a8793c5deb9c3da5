"""Steps of long rows and of short ones in one stage: never both in one step, resumed exactly."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from etude import arch
from etude.data.loader import Loader
from etude.data.tokens import TokenSet
from etude.models.describe import describe
from etude.reading import text
from etude.recipe import parts, plan
from etude.recipe.load import check, resolve
from etude.recipe.model import Model
from etude.train.loop import Progress

DATA = parts.Data(mix={"a": 1.0}, length=64, short=parts.Short(length=16, share=0.25))
BATCH = parts.Batch(rows=4)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rows = (([1 + (i + n) % 90 for n in range(40)], None) for i in range(60))
    return TokenSet.write(tmp_path_factory.mktemp("set") / "a", rows, 100)


def source(tokens, data=DATA, batch=BATCH, world=1, rank=0):
    def loader(length, suffix):
        how = {"seed": len(suffix), "rank": rank, "world": world}
        return Loader({"a": tokens}, data.mix, length=length, rows=batch.rows, **how)

    return text(data, batch, world, loader)


def step(number):
    return Progress(total=10**6, step=number)


def test_every_fourth_step_is_short_and_each_has_one_length_and_as_many_tokens(tokens):
    made = source(tokens)
    shapes = [tuple(micro.ids.shape) for n in range(12) for micro in made.next(step(n))]
    assert shapes == ([(4, 64)] * 3 + [(16, 16)]) * 3


def test_the_share_is_kept_also_where_it_is_no_fraction_of_a_whole(tokens):
    data = replace(DATA, short=parts.Short(length=16, share=0.08))  # Nemotron 3 Ultra
    made = source(tokens, data)
    short = [n for n in range(100) if made.next(step(n))[0].ids.shape[1] == 16]
    assert len(short) == 8 and min(b - a for a, b in pairwise(short)) >= 12


def test_micro_batches_hold_as_many_tokens_at_both_lengths(tokens):
    made = source(tokens, batch=parts.Batch(rows=4, micro=2))
    sizes = {micro.ids.numel() for n in range(4) for micro in made.next(step(n))}
    assert sizes == {128}


def test_it_goes_on_exactly_where_it_was_saved(tokens):
    made, again = source(tokens), source(tokens)
    for n in range(6):
        made.next(step(n))
    again.restore(made.state())
    for n in range(6, 14):
        for a, b in zip(made.next(step(n)), again.next(step(n)), strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)
    assert made.metrics() == again.metrics()
    # 14 steps of 256 tokens, over 2,400 tokens
    assert made.metrics()["epochs_a"] == pytest.approx(14 * 256 / 2400, abs=2e-3)


def test_ranks_share_the_rows_of_both_lengths(tokens):
    whole, *ranks = source(tokens), *(source(tokens, world=2, rank=rank) for rank in range(2))
    for n in range(4):
        halves = torch.cat([one.next(step(n))[0].ids for one in ranks])
        assert torch.equal(halves, whole.next(step(n))[0].ids)


def test_without_short_rows_there_is_one_length(tokens):
    made = source(tokens, replace(DATA, short=None))
    assert {made.next(step(n))[0].ids.shape for n in range(4)} == {(4, 64)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"short": {"length": 24}},
        {"short": {"length": 128}},
        {"short": {"length": 16}, "changes": [{"mix": {"a": 1}}]},
    ],
)
def test_short_rows_fill_a_long_one(wrong):
    raw = {"recipe": "r", "model": {"family": "glm45"}}
    stage = {"stage": "pretrain", "tokens": 1, "data": {"mix": {"a": 1}, "length": 64, **wrong}}
    with pytest.raises(Exception, match="short.length must divide length"):
        check(raw | {"stages": [stage]})
    with pytest.raises(ValidationError):
        parts.Short(length=4, share=1.0)


def test_a_plan_costs_both_lengths_by_their_share():
    raw = {"recipe": "r", "model": {"family": "glm45"}}
    data = {"mix": {"general": 1}, "length": 1024, "short": {"length": 64, "share": 0.25}}
    stage = {"stage": "midtrain", "tokens": 1_000_000, "data": data}
    recipe, model = resolve(check(raw | {"stages": [stage]})), describe(Model(family="glm45"))
    (row,) = plan.cost(recipe, model, 1e9)
    wanted = 0.75 * arch.train_flops(model, 1024) + 0.25 * arch.train_flops(model, 64)
    assert row.flops == pytest.approx(1e6 * wanted) and "25% of the steps" in row.note
