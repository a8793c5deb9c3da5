"""The loader resumes exactly, gives ranks parts of one batch, and keeps the weights."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.loader import Batch, Loader
from etude.data.pack import IGNORED, PACKERS
from etude.data.tokens import TokenSet
from etude.errors import EtudeError

PARTS = ("ids", "labels", "segments", "pos")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets: `a` holds even ids and no masks, `b` odd ids and masks."""
    rng, folder, made = np.random.default_rng(0), tmp_path_factory.mktemp("sets"), {}
    for name, odd in (("a", 0), ("b", 1)):
        docs = []
        for _ in range(300):
            size = int(rng.integers(1, 30))
            ids = (rng.integers(0, 40, size) * 2 + odd).tolist()
            docs.append((ids, (rng.random(size) < 0.6).tolist() if odd else None))
        made[name] = TokenSet.write(folder / name, docs, 80, shard_tokens=900)
    return made


def _loader(sets, pack, **options):
    defaults = {"length": 24, "rows": 8, "seed": 5, "pack": pack}
    return Loader(sets, {"a": 3.0, "b": 1.0}, **(defaults | options))


def _same(one, two):
    return one.tokens == two.tokens and all(
        torch.equal(getattr(one, p), getattr(two, p)) for p in PARTS
    )


@pytest.mark.parametrize("pack", list(PACKERS))
@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.sampled_from([None, 2, 4, 12]), max_size=12))
def test_a_restored_loader_gives_the_batches_of_one_that_never_stopped(sets, pack, steps):
    first = _loader(sets, pack)
    for rows in steps:
        first.next(rows)
    state = json.loads(json.dumps(first.state()))
    assert len(json.dumps(state)) < 300
    second = _loader(sets, pack)
    second.restore(state)
    assert all(_same(first.next(rows), second.next(rows)) for rows in (None, 4, None, 12))
    assert first.state() == second.state()


@pytest.mark.parametrize("pack", list(PACKERS))
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_hold_the_rows_of_the_one_rank_batch(sets, pack, world):
    whole = _loader(sets, pack)
    ranks = [_loader(sets, pack, rank=r, world=world) for r in range(world)]
    for rows in (None, 4, 12, None):
        one, parts = whole.next(rows), [loader.next(rows) for loader in ranks]
        for name in PARTS:
            assert torch.equal(getattr(one, name), torch.cat([getattr(p, name) for p in parts]))
        assert one.tokens == sum(p.tokens for p in parts)
    assert all(loader.state() == whole.state() for loader in ranks)


def test_a_ramp_of_rows_reads_the_same_rows_as_a_constant_batch(sets):
    ramp, flat = _loader(sets, "truncate"), _loader(sets, "truncate")
    grown = torch.cat([ramp.next(rows).ids for rows in (2, 4, 6, 12)])
    assert torch.equal(grown, torch.cat([flat.next().ids for _ in range(3)]))


@pytest.mark.parametrize("pack", list(PACKERS))
def test_rows_come_from_the_sets_by_weight_and_each_row_from_one(sets, pack):
    batch = _loader(sets, pack).next(4000)
    real = batch.segments > 0
    odd = ((batch.ids % 2 == 1) & real).any(1)
    assert not (odd & ((batch.ids % 2 == 0) & real).any(1)).any()
    assert odd.float().mean().item() == pytest.approx(0.25, abs=0.03)  # s.e. 0.007


def test_padding_is_inert_and_batches_are_no_wider_than_needed(sets):
    batch = _loader(sets, "pad", length=64).next()
    padding = batch.segments == 0
    assert padding.any()
    assert (batch.ids[padding] == 0).all() and (batch.labels[padding] == IGNORED).all()
    assert batch.ids.shape[1] == 32  # the longest document has 29 tokens
    assert batch.tokens == int((batch.labels != IGNORED).sum())


def test_epochs_are_counted_and_reshuffled(sets):
    loader = Loader({"a": sets["a"]}, {"a": 1}, length=32, rows=300, seed=0, pack="pad")
    one, two = loader.next(), loader.next()
    assert loader.epochs == {"a": 2.0}
    assert not torch.equal(one.ids, two.ids)
    width = max(one.ids.shape[1], two.ids.shape[1])
    rows = [
        sorted(torch.nn.functional.pad(b.ids, (0, width - b.ids.shape[1])).tolist())
        for b in (one, two)
    ]
    assert rows[0] == rows[1]


def test_other_seeds_give_other_orders_and_other_draws(sets):
    one, two = (_loader(sets, "truncate", seed=s).next() for s in (1, 2))
    assert not torch.equal(one.ids, two.ids)


def test_micro_batches_cover_the_batch_and_its_labels(sets):
    batch = _loader(sets, "truncate").next()
    parts = batch.split(3)
    assert [len(p.ids) for p in parts] == [3, 3, 2]
    assert sum(p.tokens for p in parts) == batch.tokens
    assert isinstance(parts[0], Batch) and torch.equal(torch.cat([p.pos for p in parts]), batch.pos)


@pytest.mark.parametrize("change", [{"seed": 6}, {"length": 25}, {"pack": "best_fit"}])
def test_a_position_in_other_data_is_refused(sets, change):
    state = _loader(sets, "truncate").state()
    with pytest.raises(EtudeError, match="data position"):
        _loader(sets, **({"pack": "truncate"} | change)).restore(state)


def test_wrong_requests_are_told_in_one_line(sets, tmp_path):
    empty = TokenSet.write(tmp_path / "none", [], 80)
    one = {"a": sets["a"]}
    cases = [
        ({"a": empty}, {"a": 1}, {}, "the set is empty"),
        (one, {"b": 1}, {}, "no such set"),
        (one, {"a": -1}, {}, "a number from 0 up"),
        (one, {"a": 0}, {}, "no set has a share"),
        (one, {"a": 1}, {"pack": "best_fti"}, "did you mean best_fit"),
        (one, {"a": 1}, {"length": 1}, "at least 2"),
    ]
    for given_sets, weights, options, message in cases:
        with pytest.raises(EtudeError, match=message):
            Loader(given_sets, weights, **({"length": 8, "rows": 2, "seed": 0} | options))
    with pytest.raises(EtudeError, match="multiple of the 2 ranks"):
        Loader(one, {"a": 1}, length=8, rows=3, seed=0, world=2).next()
    long = TokenSet.write(tmp_path / "long", [([1] * 50, None)], 80)
    with pytest.raises(EtudeError, match="raise length to 50"):
        Loader({"a": long}, {"a": 1}, length=8, rows=2, seed=0, pack="pad")


@pytest.mark.parametrize("pack", ["truncate", "best_fit"])
def test_loading_is_far_faster_than_training(tmp_path, pack):
    """Short documents are the slow case; a tiny model trains at 5,000 tokens a second here."""
    rng = np.random.default_rng(0)
    docs = [(rng.integers(0, 1000, int(n)), None) for n in rng.integers(20, 200, 4000)]
    tokens = TokenSet.write(tmp_path / "set", docs, 1024)
    loader = Loader({"a": tokens}, {"a": 1}, length=256, rows=16, seed=0, pack=pack)
    loader.next()
    start = time.process_time()
    for _ in range(20):
        loader.next()
    rate = 20 * 16 * 256 / (time.process_time() - start)
    assert rate > 200_000  # measured 3 to 6 million


def test_the_mixture_moves_in_a_straight_line_and_a_restored_loader_goes_on_in_it(sets):
    """From 3 : 1 to all of `b` over 400 rows, behind 200 rows: half-way 3 in 8 are of `a`."""
    moving = {"changes": [({"b": 1.0}, 200, 400)], "rows": 100}
    loader, shares = _loader(sets, "truncate", **moving), []
    for number in range(8):
        if number == 4:
            state = json.loads(json.dumps(loader.state()))
            loader = _loader(sets, "truncate", **moving)
            loader.restore(state)
        batch = loader.next()
        shares.append(float((batch.ids[:, 0] % 2 == 0).float().mean()))
    plain = _loader(sets, "truncate", rows=100)
    assert shares[:2] == [float((plain.next().ids[:, 0] % 2 == 0).float().mean()) for _ in range(2)]
    for share, expected in zip(shares, [0.75, 0.75, 0.656, 0.469, 0.281, 0.094, 0, 0], strict=True):
        assert share == pytest.approx(expected, abs=0.13)  # three deviations of 100 draws
    assert shares[6:] == [0, 0]


def test_a_set_that_joins_later_is_checked_at_once(sets):
    with pytest.raises(EtudeError, match="no such set"):
        _loader(sets, "truncate", changes=[({"c": 1.0}, 5, 0)])
