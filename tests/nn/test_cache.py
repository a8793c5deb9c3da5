"""Cached passes: prefill, chunks and single steps give what one whole pass gives."""

import importlib.util
from pathlib import Path

import pytest
import torch

from etude.errors import EtudeError
from etude.nn.cache import FEW, Cache, Packing

spec = importlib.util.spec_from_file_location("nn_helpers", Path(__file__).with_name("helpers.py"))
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
model, rows = helpers.model, helpers.rows

CLOSE = {"atol": 1e-4, "rtol": 0}  # measured 1e-5 on logits of scale 10; a lost key moves 1e-2


@pytest.mark.parametrize("cuts", [[12], [5, 7], [5, 1, 1, 1, 1, 1, 1, 1], [1] * 12, [3, 1, 8]])
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_any_cut_of_a_row_gives_the_whole(batch, cuts):
    m, ids = model(), torch.stack(rows(*[12] * batch))
    cache = Cache(m, rows=batch, capacity=12)
    pieces = [m(part, cache=cache) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), m(ids), **CLOSE)
    assert cache.lengths.tolist() == [12] * batch


@torch.no_grad()
def test_rows_of_different_lengths_go_on_from_where_each_ended():
    m, parts = model(), rows(6, 3, 1)
    tails = torch.stack(rows(5, 5, 5))
    ids = torch.zeros(3, 6).long()
    mask = torch.zeros(3, 6).bool()
    for i, part in enumerate(parts):
        ids[i, : len(part)], mask[i, : len(part)] = part, True
    cache = Cache(m, rows=3, capacity=16)
    first = m(ids, mask=mask, cache=cache)
    assert cache.lengths.tolist() == [6, 3, 1]
    steps = [m(tails[:, :2], cache=cache), *(m(t, cache=cache) for t in tails[:, 2:].split(1, 1))]
    after = torch.cat(steps, 1)
    for i, part in enumerate(parts):
        whole = m(torch.cat((part, tails[i]))[None])[0]
        torch.testing.assert_close(first[i, : len(part)], whole[: len(part)], **CLOSE)
        torch.testing.assert_close(after[i], whole[len(part) :], **CLOSE)


@torch.no_grad()
def test_a_second_padded_chunk_overwrites_the_padding_of_the_first():
    m, parts = model(), rows(4, 2)
    more = rows(1, 5)
    cache = Cache(m, rows=2, capacity=9)
    for chunk in (parts, more):
        width = max(map(len, chunk))
        ids = torch.stack([torch.cat((c, torch.zeros(width - len(c)).long())) for c in chunk])
        mask = torch.stack([torch.arange(width) < len(c) for c in chunk])
        logits = m(ids, mask=mask, cache=cache)
    for i in range(2):
        whole = m(torch.cat((parts[i], more[i]))[None])[0]
        torch.testing.assert_close(logits[i, : len(more[i])], whole[len(parts[i]) :], **CLOSE)


@torch.no_grad()
def test_finished_rows_leave_the_batch():
    m, ids = model(), torch.stack(rows(6, 6, 6))
    cache = Cache(m, rows=3, capacity=8)
    m(ids, cache=cache)
    cache.keep(torch.tensor([2, 0]))
    step = torch.tensor([[1], [2]])
    logits = m(step, cache=cache)
    whole = m(torch.cat((ids[[2, 0]], step), 1))[:, -1:]
    torch.testing.assert_close(logits, whole, **CLOSE)


@torch.no_grad()
def test_equal_rows_under_a_mask_stay_on_the_fast_path():
    m, ids = model(), torch.stack(rows(6, 6))
    cache = Cache(m, rows=2, capacity=8)
    m(ids, mask=torch.ones_like(ids), cache=cache)
    assert cache.begin(2, 1, None) == (None, False)


@torch.no_grad()
def test_a_cache_of_a_bfloat16_model_is_bfloat16():
    m = model().to(torch.bfloat16)
    cache = Cache(m, rows=1, capacity=8)
    ids = torch.stack(rows(6))
    logits = torch.cat([m(part, cache=cache) for part in ids.split(2, 1)], 1)
    assert cache.slots[0]["k"].dtype == torch.bfloat16
    similarity = torch.cosine_similarity(logits.flatten(), m(ids).flatten(), dim=0)
    assert similarity > 0.99


@pytest.mark.parametrize(
    ("ids", "mask", "told"),
    [
        ((2, 3), None, "2 rows, expected 1"),
        ((1, 9), None, "at most 8"),
        ((1, 3), [[0, 1, 1]], "padding left"),
    ],
)
def test_what_does_not_fit_is_an_error(ids, mask, told):
    m = model()
    with pytest.raises(EtudeError, match=told):
        m(
            torch.zeros(ids).long(),
            mask=None if mask is None else torch.tensor(mask),
            cache=Cache(m, rows=1, capacity=8),
        )


def test_the_cache_holds_what_the_mixers_declare():
    m = model()
    cache = Cache(m, rows=2, capacity=5)
    assert [slot.name for slot in m.mixers()[0].slots()] == ["k", "v"]
    assert len(cache.slots) == 3
    assert cache.slots[0]["v"].shape == (2, 5, 2, 8)


def test_weights_are_laid_out_once_by_the_first_pass_of_few_tokens():
    mlp = model().layers[0].ffn.op

    def turned(packing, tokens):
        return packing.packed(mlp, tokens)[2].stride(0) == 1

    packing = Packing()
    assert [turned(packing, tokens) for tokens in (FEW + 1, FEW, FEW + 1)] == [False, True, True]
    assert packing.packed(mlp, 1)[2] is packing.packed(mlp, FEW + 1)[2]
    assert turned(Packing(fixed=True), FEW + 1)
