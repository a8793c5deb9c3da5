"""Bits per byte: every token but the first once, however the text is cut into windows."""

import math

import pytest
import torch

from etude.evals.bits import bits_per_byte, ratio, windows
from tests.rl.fakes import VOCAB, model


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 12, 40])
def test_windows_score_every_target_once_with_half_a_window_before_it(length):
    found = windows(length, 8)
    targets = [t for begin, end, first in found for t in range(first, end)]
    assert targets == list(range(1, length))
    assert all(end - begin <= 8 and begin < first for begin, end, first in found)
    assert all(first - begin >= 4 for begin, _, first in found[1:])


def test_a_short_text_gives_the_sum_of_its_log_probabilities():
    policy, ids = model(), list(range(10, 20))
    with torch.no_grad():
        logp = policy(torch.tensor([ids])).log_softmax(-1)[0]
    nats = -sum(float(logp[p, ids[p + 1]]) for p in range(9))
    found = bits_per_byte(policy, [(ids, 17)])
    assert found.value == pytest.approx(nats / math.log(2) / 17, rel=1e-5)


def test_texts_are_weighed_by_their_bytes_and_do_not_see_each_other():
    policy = model()
    texts = [(list(range(5, 30)), 40), (list(range(50, 58)), 9)]
    alone = [bits_per_byte(policy, [text]).value for text in texts]
    both = bits_per_byte(policy, texts)
    assert both.value == pytest.approx((alone[0] * 40 + alone[1] * 9) / 49, rel=1e-5)
    assert both.low < both.value < both.high and both.n == 2


def test_a_uniform_model_needs_log2_of_its_vocabulary_per_token():
    policy = model()
    policy.head.weight.data.zero_()
    found = bits_per_byte(policy, [(list(range(100)), 99)], window=16)
    assert found.value == pytest.approx(math.log2(VOCAB), rel=1e-5)


def test_few_documents_have_the_wide_interval_of_student():
    """By hand: 1 and 3 bits over a byte each; deviation sqrt 2, over sqrt 2, times 12.7."""
    found = ratio([1.0, 3.0], [1, 1])
    assert found.value == 2 and found.high - found.value == pytest.approx(12.7062)


def test_measuring_leaves_the_models_mode_alone():
    policy = model().train()
    bits_per_byte(policy, [([1, 2, 3], 3)])
    assert policy.training
