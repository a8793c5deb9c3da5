"""Cached batched decoding gives what a pass over the whole row gives, whoever sits beside it."""

import numpy as np
import pytest
import torch

import etude
from etude.engine import generate as engine
from etude.errors import EtudeError
from etude.nn.cache import Cache

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [40, 41, 42, 43], [9, 8], [3]]


@pytest.fixture(scope="module")
def model():
    """A tiny model whose head is scaled up, so that greedy choices are clear."""
    made = etude.create(
        "glm45",
        "tiny",
        seed=1,
        hidden_size=32,
        intermediate_size=40,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        vocab_size=50,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * (1.0 if p.ndim == 1 else 1.5 / p.shape[-1] ** 0.5))
    return made


def slow(model, prompt, max_tokens):
    """Greedy decoding with a whole forward pass per token and no cache."""
    row = list(prompt)
    with torch.no_grad():
        for _ in range(max_tokens):
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]


def test_greedy_batches_equal_each_row_decoded_without_a_cache(model):
    made = engine.generate(model, PROMPTS, max_tokens=9)
    assert [row.tokens for row in made] == [slow(model, prompt, 9) for prompt in PROMPTS]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logp_is_that_of_a_forward_pass_over_the_whole_row(model, temperature):
    for prompt, made in zip(
        PROMPTS,
        engine.generate(model, PROMPTS, max_tokens=6, temperature=temperature, seed=4),
        strict=True,
    ):
        whole = torch.tensor([prompt + made.tokens])
        with torch.no_grad():
            logits = model(whole)[0, len(prompt) - 1 : -1] / (temperature or 1.0)
        expected = logits.log_softmax(-1).gather(1, whole[0, len(prompt) :, None])[:, 0]
        # float32; the wrong position or temperature moves 0.1 or more
        torch.testing.assert_close(torch.tensor(made.logp), expected, atol=2e-5, rtol=0)


@pytest.fixture
def passes(model, monkeypatch):
    """Shapes [B, T, D] of what goes through the trunk."""
    seen, trunk = [], type(model).trunk

    def counted(self, x, ctx):
        seen.append(tuple(x.shape[:2]))
        return trunk(self, x, ctx)

    monkeypatch.setattr(type(model), "trunk", counted)
    return seen


def test_a_prompt_read_in_chunks_gives_the_same_tokens(model, monkeypatch, passes):
    prompts = [list(range(1, 41)), list(range(2, 20)), [7], list(range(9, 42))]
    whole = engine.generate(model, prompts, max_tokens=5)
    assert passes == [(1, 40 + 18 + 1 + 33)] + [(4, 1)] * 4
    passes.clear()
    monkeypatch.setattr(engine, "BUDGET", 16)
    monkeypatch.setattr(engine, "ROWS", 4)
    made = engine.generate(model, prompts, max_tokens=5)
    assert [row.tokens for row in made] == [row.tokens for row in whole]
    assert passes[0] == (1, 16) and all(rows * width <= 16 for rows, width in passes)


def test_a_row_samples_the_same_alone_in_a_batch_and_next_to_rows_that_end(model):
    how = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "stop": [0, 1, 2, 3, 4, 5]}
    together = engine.generate(model, PROMPTS, seed=[1, 2, 3, 4, 5], **how)
    assert len({len(row.tokens) for row in together}) > 2  # rows do end at different steps
    for seed, (prompt, row) in enumerate(zip(PROMPTS, together, strict=True), start=1):
        [alone] = engine.generate(model, [prompt], seed=seed, **how)
        assert (alone.tokens, alone.finish) == (row.tokens, row.finish)
        assert list(engine.stream(model, prompt, seed=seed, **how)) == row.tokens


def test_equal_prompts_differ_by_seed_and_one_seed_gives_other_prompts_other_draws(model):
    one, two, again = engine.generate(
        model, [[3], [3], [3]], seed=[1, 2, 1], max_tokens=12, temperature=1.5
    )
    assert one == again and one.tokens != two.tokens


def test_a_stop_token_ends_a_row_and_is_part_of_it(model):
    tokens = slow(model, PROMPTS[0], 9)
    stop = tokens[4]
    [row] = engine.generate(model, PROMPTS[:1], max_tokens=9, stop={stop})
    cut = tokens[: tokens.index(stop) + 1]
    assert (row.tokens, row.finish, len(row.logp)) == (cut, "stop", len(cut))
    [row] = engine.generate(model, PROMPTS[:1], max_tokens=2)
    assert (row.tokens, row.finish) == (tokens[:2], "length")


def test_tokens_are_reported_step_by_step(model):
    seen = []
    made = engine.generate(model, PROMPTS, max_tokens=3, on_token=lambda *one: seen.append(one))
    assert [row for row, _ in seen] == [0, 1, 2, 3, 4] * 3
    assert [[t for row, t in seen if row == n] for n in range(5)] == [row.tokens for row in made]


def test_more_rows_than_decode_together_are_answered_in_order(model, monkeypatch):
    whole = engine.generate(model, PROMPTS, max_tokens=4)
    monkeypatch.setattr(engine, "ROWS", 2)
    assert [r.tokens for r in engine.generate(model, PROMPTS, max_tokens=4)] == [
        r.tokens for r in whole
    ]


def test_equal_prompts_are_read_once(model, passes):
    made = engine.generate(model, [[5, 6, 7]] * 4 + [[9]], max_tokens=3)
    assert passes == [(1, 4), (5, 1), (5, 1)]
    assert made[0].tokens == made[3].tokens == slow(model, [5, 6, 7], 3)


def test_a_row_ends_where_the_model_does(model):
    [row, other] = engine.generate(model, [list(range(1, 50)) + [1] * 12, [4]], max_tokens=10)
    assert (len(row.tokens), row.finish, len(other.tokens)) == (3, "length", 10)


def test_a_row_that_ended_at_the_end_of_the_model_does_not_hold_up_the_many_beside_it(model):
    prompts = [[1] * 61, [4], [5], [6], [7]]  # four of five go on: the batch is not packed for one
    made = engine.generate(model, prompts, max_tokens=10)
    assert [len(row.tokens) for row in made] == [3, 10, 10, 10, 10]
    assert made[1].tokens == slow(model, [4], 10)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ([[1], []], "prompt 1: is empty"),
        ([[1] * 64], "prompt 0: has 64 tokens, expected fewer than the model's length, 64"),
        ([[1, 50]], "has ids 1 to 50, expected 0 to 49"),
        ([[-1]], "has ids -1"),
    ],
)
def test_a_prompt_that_can_not_be_read_is_named(model, prompts, told):
    with pytest.raises(EtudeError, match=told):
        engine.generate(model, prompts)
    with pytest.raises(EtudeError, match="3 seeds"):
        engine.generate(model, [[1]], seed=[1, 2, 3])


def test_a_seed_may_be_any_kind_of_integer(model):
    how = {"max_tokens": 8, "temperature": 1.0}
    whole = engine.generate(model, [[3]], seed=3, **how)
    assert engine.generate(model, [[3]], seed=np.int64(3), **how) == whole
    assert engine.generate(model, [[3]], seed=np.array([3]), **how) == whole
    assert engine.generate(model, [[3]], seed=torch.tensor(3), **how) == whole


def test_nothing_asked_for_is_nothing_given(model):
    assert engine.generate(model, []) == []
    assert engine.generate(model, [[1]], max_tokens=0) == [engine.Answer(finish="length")]
    with pytest.raises(EtudeError, match="max_tokens: -1, expected 0 or more"):
        engine.generate(model, [[1]], max_tokens=-1)


def test_a_model_still_trains_after_it_has_generated(model):
    engine.generate(model, PROMPTS, max_tokens=3)
    ids = torch.tensor([[1, 2, 3, 4]])
    (-model(ids, labels=ids).logp.sum()).backward()
    assert model.head.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)
    assert not Cache(model, rows=1, capacity=2).lengths.is_inference()


def test_the_public_function_takes_and_gives_lists_of_ids(model):
    expected = [slow(model, prompt, 4) for prompt in PROMPTS]
    assert etude.generate(model, PROMPTS, max_tokens=4, temperature=0.0) == expected
    assert etude.generate(model, torch.tensor([PROMPTS[0]]), max_tokens=4) == expected[:1]
    with pytest.raises(EtudeError, match="no tokenizer"):
        etude.generate(model, ["text"], max_tokens=4)
    for flat in ([1, 2, 3], torch.tensor([1, 2, 3])):
        with pytest.raises(EtudeError, match="prompts: are not rows of ids"):
            etude.generate(model, flat, max_tokens=4)


class Letters:
    """A tokenizer of single letters."""

    def __init__(self, *stop_ids):
        self.stop_ids = stop_ids

    def encode(self, text):
        return [ord(c) - 96 for c in text]

    def decode(self, ids):
        return "".join(chr(96 + id) for id in ids)


def test_text_goes_in_and_out_where_there_is_a_tokenizer(model):
    published = model.published
    try:
        ids = slow(model, [1, 2, 3], 5)
        words = Letters(ids[3])
        model.published = type(published)(published.family, published.config, None, words)
        expected = words.decode(ids[: ids.index(ids[3])])
        assert etude.generate(model, "abc", max_tokens=5) == expected
        assert etude.generate(model, ["abc"], max_tokens=5) == [expected]
        kept = etude.generate(model, "abc", max_tokens=5, stop={ids[1]})
        assert kept == words.decode(ids[: ids.index(ids[1])])
    finally:
        model.published = published
