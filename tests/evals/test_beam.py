"""Beam search against trying every sequence."""

from itertools import product

import pytest
import torch

from etude.engine.generate import generate
from etude.evals.beam import beam
from etude.models.checkpoint import create

VOCAB, STOP = 6, 5


@pytest.fixture(scope="module")
def model():
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "d_head": 8, "n_positions": 16}
    return create("gpt3", "tiny", vocab_size=VOCAB, initializer_range=0.7, window=4, **shape)


def best(model, prompt, most, alpha):
    """The finished sequence of highest log P / ((5 + n) / 6)^alpha, n with its end."""
    found = {}
    for n in range(1, most + 1):
        for body in product(range(VOCAB - 1), repeat=n - 1):
            ids = torch.tensor([[*prompt, *body, STOP]])
            with torch.no_grad():
                logp = model(ids)[0].log_softmax(-1)
            places = range(len(prompt) - 1, ids.shape[1] - 1)
            total = sum(float(logp[at, ids[0, at + 1]]) for at in places)
            found[body] = total / ((5 + n) / 6) ** alpha
    return max(found, key=found.__getitem__)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
@pytest.mark.parametrize("prompt", [[1, 2], [3], [0, 4, 2, 1]])
def test_a_beam_as_wide_as_all_sequences_finds_the_best_of_them(model, prompt, alpha):
    found = beam(model, prompt, width=300, max_tokens=3, stop={STOP}, length_penalty=alpha)
    assert tuple(found) == best(model, prompt, 3, alpha)


def test_a_larger_penalty_prefers_longer_answers(model):
    prompts = [[a, b] for a in range(5) for b in range(5)]
    sizes = [
        sum(
            len(beam(model, p, width=300, max_tokens=3, stop={STOP}, length_penalty=a))
            for p in prompts
        )
        for a in (0.0, 0.6, 6.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[2] > sizes[0]


def test_without_a_stop_a_beam_of_one_is_greedy(model):
    for prompt in ([1], [2, 3], [4, 0, 0]):
        [greedy] = generate(model, [prompt], max_tokens=6)
        assert beam(model, prompt, width=1, max_tokens=6) == greedy.tokens


def test_an_answer_ends_where_the_model_does(model):
    assert len(beam(model, [1] * 14, width=2, max_tokens=9)) == 2
