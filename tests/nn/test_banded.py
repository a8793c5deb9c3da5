"""A decoder with banded layers: one function of the text, however it is cut, packed or padded."""

import pytest
import torch

from etude.arch import MLP, Attention, Banded, Decoder, Init, LayerNorm, Residual
from etude.nn import build
from etude.nn.cache import Cache
from etude.nn.init import initialise

EXACT = {"atol": 1e-5, "rtol": 0}  # measured 2e-6 on logits of spread 1
VOCAB = 40
SPANS = [Banded(4), Banded(3, stride=7), Banded(1), Banded(50)]

pytestmark = [pytest.mark.parametrize("span", SPANS, ids=str), pytest.mark.usefixtures("_no_grad")]


@pytest.fixture
def _no_grad():
    with torch.no_grad():
        yield


def decoder(span):
    """Dense and banded layers in turn over a learned table of positions."""
    layers = tuple(
        (
            Residual(Attention(4, 2, 6, qkv_bias=True, out_bias=True, span=kind)),
            Residual(MLP(20, gated=False, activation="gelu_tanh", bias=True)),
        )
        for kind in (None, span, span)
    )
    plan = Decoder(
        dim=16,
        vocab=VOCAB,
        layers=layers,
        norm=LayerNorm(),
        tied=True,
        positions=64,
        max_length=64,
        init=Init(std=0.3, positions=0.5),
    )
    return initialise(build.decoder(plan), seed=3)


def text(*lengths):
    return [torch.randint(0, VOCAB, (1, n)) for n in lengths]


@pytest.mark.parametrize("cut", [(29,), (9, 11, 9), (1,) * 29, (20, 1, 1, 7)])
def test_a_prefill_in_any_cut_equals_the_whole(span, cut):
    model, (ids,) = decoder(span), text(29)
    cache = Cache(model, rows=1, capacity=40)
    parts = [model(part, cache=cache) for part in ids.split(cut, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), **EXACT)


def test_rows_of_different_length_in_one_cache_equal_each_alone(span):
    model, lengths = decoder(span), (27, 9, 2)
    whole = text(*(n + 8 for n in lengths))
    alone = [model(row) for row in whole]
    ids, mask = torch.zeros(3, 27, dtype=torch.long), torch.zeros(3, 27, dtype=torch.bool)
    for i, n in enumerate(lengths):
        ids[i, :n], mask[i, :n] = whole[i][0, :n], True
    cache = Cache(model, rows=3, capacity=40)
    model(ids, mask=mask, cache=cache)
    at = 0
    for new in (1, 1, 3, 1, 2):
        spans = zip(whole, lengths, strict=True)
        part = torch.cat([row[:, n + at : n + at + new] for row, n in spans])
        logits = model(part, cache=cache)
        for i, n in enumerate(lengths):
            torch.testing.assert_close(logits[i], alone[i][0, n + at : n + at + new], **EXACT)
        at += new


def test_packed_documents_equal_separate_runs(span):
    model, parts = decoder(span), text(13, 1, 22, 6)
    segments = torch.cat([torch.full_like(p, n) for n, p in enumerate(parts, 1)], 1)
    packed = model(torch.cat(parts, 1), segments=segments)
    torch.testing.assert_close(packed, torch.cat([model(p) for p in parts], 1), **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(span, side):
    model, lengths = decoder(span), (30, 17, 1)
    ids, mask = torch.randint(0, VOCAB, (3, 30)), torch.zeros(3, 30, dtype=torch.bool)
    for i, n in enumerate(lengths):
        mask[i, 30 - n :] = True
    if side == "right":
        mask = mask.flip(1)
    padded = model(ids, mask=mask)
    for i in range(3):
        torch.testing.assert_close(padded[i, mask[i]], model(ids[i, mask[i]][None])[0], **EXACT)
