"""The n-gram model is a probability model, agrees with a slow one, and beats gzip."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from etude.data.baselines import COMPRESSORS, NGram, compressed
from etude.errors import EtudeError

TRAIN = [
    "the cat sat on the mat. the dog sat on the log.",
    "a cat and a dog sat. the end.",
    "naïve café",
]


def _slow(train, text, order):
    """Interpolated Kneser-Ney of bytes, from the formula, one gram at a time."""
    raw = Counter()
    for one in train:
        row = bytes(order - 1) + one.encode()
        raw.update(row[i : i + order] for i in range(len(row) - order + 1))
    tables = [raw]
    for size in range(order - 1, 0, -1):
        tables.insert(0, Counter(gram[-size:] for gram in tables[0]))

    def probability(gram):
        if not gram:
            return 1 / 256
        table = tables[len(gram) - 1]
        once, twice = (sum(c == n for c in table.values()) for n in (1, 2))
        d = min(max(once / (once + 2 * twice) if once else 0.5, 0.05), 0.95)
        after = defaultdict(dict)
        for g, c in table.items():
            after[g[:-1]][g[-1]] = c
        seen = after.get(gram[:-1])
        if not seen:
            return probability(gram[1:])
        total = sum(seen.values())
        return (max(table[gram] - d, 0) + d * len(seen) * probability(gram[1:])) / total

    row = bytes(order - 1) + text.encode()
    return sum(-math.log2(probability(row[i : i + order])) for i in range(len(row) - order + 1))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bits_equal_the_formula_worked_out_gram_by_gram(order):
    text = "the dog and the café.\x00zz"
    assert NGram.train(TRAIN, order).bits([text]) == pytest.approx(
        _slow(TRAIN, text, order), rel=1e-9
    )


@pytest.mark.parametrize("context", [b"\0\0\0", b"the", b"e d", b"qqq", "f\u00e9".encode()])
def test_probabilities_of_the_next_byte_add_up_to_one(context):
    key = np.uint64(int.from_bytes(context, "big")) << np.uint64(8)
    chances = NGram.train(TRAIN, 4)._probability(key + np.arange(256, dtype=np.uint64))
    assert chances.min() > 0
    assert chances.sum() == pytest.approx(1.0)


def _text(count, seed):
    rng = random.Random(seed)
    words = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "return",
        "value",
        "if",
        "else",
        "for",
        "in",
        "range",
    ]
    return [" ".join(rng.choices(words, k=200)) for _ in range(count)]


def test_more_context_and_more_text_help_and_the_model_beats_both_compressors():
    train, test = _text(60, 0), _text(6, 1)
    costs = [NGram.train(train, order).bits_per_byte(test) for order in (1, 3, 5)]
    assert costs[0] > costs[1] > costs[2]
    assert NGram.train(train[:2], 5).bits_per_byte(test) > costs[2]
    for kind in COMPRESSORS:
        assert costs[2] < compressed(kind, train, test) < 8


def test_random_bytes_cost_at_least_what_they_hold():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefghijklmnop", k=4000)) for _ in range(4)]
    assert NGram.train(texts[:3], 4).bits_per_byte(texts[3:]) > 4.0  # 16 equal letters: 4 bits


def test_the_widest_order_uses_all_64_bits():
    model = NGram.train(["\x7fabcdefghij" * 9], 8)
    assert model.bits_per_byte(["\x7fabcdefghij" * 4]) < 1.0


def test_nothing_to_measure_and_wrong_names_are_told():
    with pytest.raises(EtudeError, match="no text"):
        NGram.train([""])
    with pytest.raises(EtudeError, match="1 to 8"):
        NGram.train(TRAIN, 9)
    with pytest.raises(EtudeError, match="nothing to measure"):
        NGram.train(TRAIN).bits_per_byte([])
    with pytest.raises(EtudeError, match="gzip"):
        compressed("zip", TRAIN, TRAIN)
