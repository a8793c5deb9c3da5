"""Bits per byte by place: buckets that add up to the whole, and what cannot look back far."""

import math

import pytest
import torch

from etude.errors import EtudeError
from etude.evals.bits import bits_per_byte
from etude.evals.lengths import by_place, stretches
from etude.evals.report import lengths
from etude.evals.report.record import Run
from etude.models.checkpoint import create
from etude.recipe.load import load
from etude.text.tokenizer import Tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog. " * 8,
    "another text, somewhat shorter. " * 6,
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300, ["<end>"])


@pytest.fixture(scope="module")
def model():
    return create("minimax_m1", "mini", seed=0, vocab_size=300)


def test_the_buckets_together_are_the_whole_text(tokenizer, model):
    rows = stretches(tokenizer, TEXTS, length=48, most=10)
    assert {len(row) for row in rows} == {48} and len(rows) > 2
    found = by_place(model, tokenizer, rows, (16, 32, 48))
    sizes = [len(tokenizer.decode_bytes(row[1:])) for row in rows]
    whole = bits_per_byte(model, zip(rows, sizes, strict=True))
    parts = [
        [len(tokenizer.decode_bytes(row[low:high])) for row in rows]
        for low, high in ((1, 16), (16, 32), (32, 48))
    ]
    shares = [sum(part) / sum(sizes) for part in parts]
    mean = sum(share * found[edge].value for share, edge in zip(shares, (16, 32, 48), strict=True))
    assert mean == pytest.approx(whole.value, abs=1e-6)
    assert list(found) == [16, 32, 48] and found[16].n == len(rows)


def test_each_place_is_scored_with_all_that_stands_before_it(tokenizer, model):
    row = stretches(tokenizer, TEXTS, length=40, most=1)[0]
    logits = model(torch.tensor([row]))[0, 38]
    bits = -logits.log_softmax(-1)[row[39]].item() / math.log(2)
    found = by_place(model, tokenizer, [row], (39, 40))
    assert found[40].value == pytest.approx(bits / len(tokenizer.decode_bytes([row[39]])), abs=1e-5)


def test_stretches_are_taken_from_the_texts_in_turn(tokenizer):
    first, second = (tokenizer.encode(text) for text in TEXTS)
    found = stretches(tokenizer, TEXTS, length=20, most=3)
    assert found == [first[:20], second[:20], first[20:40]]


def test_edges_beyond_the_context_of_the_model_are_refused_before_anything_runs(tmp_path):
    from etude.models.describe import planned
    from etude.recipe.fit import check_fit

    recipe = load("minimax_m1_quick", ["eval.by_length.edges=[64, 100000]"])
    with pytest.raises(EtudeError, match=r"eval\.by_length\.edges: 100000 tokens"):
        check_fit(recipe, planned(recipe))


def test_the_page_draws_one_line_a_stage():
    rows = [
        {"column": "length", "task": "long", "level": edge, "metric": "bpb there", "value": 2.5}
        for edge in (64, 128, 256)
    ]
    told = [{"stage": stage, "rows": rows} for stage in ("short", "extended")]
    section = lengths.section(Run({}, [], evals=told))
    assert section and section.count("2.500") == 6 and "to 256" in section
    assert "extended, to 256:" in section and "2 bits" in section
