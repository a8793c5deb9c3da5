"""The protocol of examples in the prompt: what is asked, and by which rule a choice is made."""

import random

import pytest
import torch

from etude.data.tasks_fewshot import Drawn, Example, Materials, task
from etude.engine.generate import generate
from etude.errors import EtudeError
from etude.evals import fewshot
from etude.evals.fewshot import _fitted, ask_with_examples, log_probabilities, prompt_text
from etude.models.checkpoint import create
from etude.recipe.parts import FewShot
from etude.text.chat import new_tokenizer

TEXTS = [" ".join(f"{stem}s {stem}{n}" for n in range(40)) for stem in ("river", "stone", "field")]
TEXTS.append(" ".join(f"mill{n} window" for n in range(40)))
MATERIALS = Materials(lambda: TEXTS, lambda: TEXTS)


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer(iter(TEXTS * 4), 320, format=None)


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "d_head": 8, "n_positions": 128}
    return create("gpt3", "tiny", vocab_size=tokenizer.vocab_size, initializer_range=0.3, **shape)


def test_the_score_of_a_continuation_is_the_sum_of_its_log_probabilities(model):
    """Both kinds of padding aside: pairs of other lengths stand in the same batch."""
    rng = random.Random(0)
    pairs = [
        ([rng.randrange(250) for _ in range(3 + n)], [rng.randrange(250) for _ in range(1 + n % 3)])
        for n in range(40)
    ]
    found = log_probabilities(model, pairs)
    for (context, after), logp in zip(pairs, found, strict=True):
        ids = torch.tensor([[*context, *after]])
        table = model(ids)[0].log_softmax(-1)
        places = range(len(context) - 1, ids.shape[1] - 1)
        expected = sum(float(table[at, ids[0, at + 1]]) for at in places)
        assert logp == pytest.approx(expected, abs=1e-4)


def test_a_choice_goes_by_the_mean_per_token_or_by_what_it_gains_over_a_bare_context(
    tokenizer, monkeypatch
):
    """By hand: the frequent wrong option wins per token and loses once its base rate is taken."""
    right, common, long = " river3", " mill4", " river3 mill4"
    sizes = {choice: len(tokenizer.encode(choice)) for choice in (right, common, long)}
    context = {right: -2.0 * sizes[right], common: -1.5 * sizes[common], long: -3.0 * sizes[long]}
    bare = {right: -5.0 * sizes[right], common: -1.6 * sizes[common], long: -3.0 * sizes[long]}

    def scores(model, pairs):
        tables = [bare if tokenizer.decode(c) == "A:" else context for c, _ in pairs]
        return [t[tokenizer.decode(after)] for t, (_, after) in zip(tables, pairs, strict=True)]

    monkeypatch.setattr(fewshot, "log_probabilities", scores)
    of = Drawn(lambda rng: Example("Q", right), forms=("choice",))
    asked = [(tokenizer.encode("Q"), [Example("Q", right, (right, common, long))])]
    assert dict(fewshot._chosen(None, tokenizer, of, asked)) == {
        "per token": [False],
        "over base": [True],
    }


def test_a_prompt_is_instruction_then_solved_examples_then_the_question():
    of = task("RW", MATERIALS)
    examples = [Example("rewop =", " power"), Example("thgil =", " light")]
    assert prompt_text(of, examples) == (
        "Please unscramble the letters into a word, and write that word:\nrewop = power\nthgil ="
    )


def test_where_the_examples_do_not_fit_there_are_fewer_and_none_is_cut(model, tokenizer):
    of = task("2D+", MATERIALS)
    episode = of.episode(random.Random(0), 50)
    ids, examples = _fitted(model, tokenizer, of, episode, 50, 8)
    assert 1 < len(examples) < 51
    assert len(ids) + 8 <= 128
    one_more = [*episode[: len(examples)], episode[-1]]
    assert len(tokenizer.encode(prompt_text(of, one_more))) + 8 > 128
    assert prompt_text(of, examples).startswith(episode[0].prompt)


def test_a_question_too_long_without_any_example_is_said(model, tokenizer):
    of = Drawn(lambda rng: Example("x " * 200, " y"))
    with pytest.raises(EtudeError, match="a question of"):
        _fitted(model, tokenizer, of, of.episode(random.Random(0), 0), 0, 4)


def test_rows_tell_shots_that_fitted_and_stages_get_the_same_questions(model, tokenizer):
    spec = FewShot(shots=(0, 1, 60))
    args = (model, tokenizer, "maps", spec, MATERIALS)
    rows, shown = ask_with_examples(*args, items=12, seed=3)
    assert {row["mode"] for row in rows} == {"0-shot", "1-shot", "60-shot"}
    assert {row["metric"] for row in rows} == {"exact", "per token", "over base"}
    shots = {row["mode"]: row["shots"] for row in rows}
    assert shots["0-shot"] == 0
    assert shots["1-shot"] == 1
    assert 10 < shots["60-shot"] < 60  # 128 tokens hold no more
    again, cards = ask_with_examples(*args, items=12, seed=3)
    assert again == rows
    assert [card["prompt"] for card in cards] == [card["prompt"] for card in shown]
    assert all(row["n"] == 12 for row in rows)


def test_a_written_answer_counts_only_to_the_letter(tokenizer, model, monkeypatch):
    class Done:
        def __init__(self, text):
            self.tokens = tokenizer.encode(text)

    replies = iter([" 7\nQ: What", " 7 ", " 77", ""])
    monkeypatch.setattr(
        fewshot, "generate", lambda model, prompts, **how: [Done(next(replies)) for _ in prompts]
    )
    asked = [(tokenizer.encode("Q" * (n + 1)), [Example("Q", " 7")]) for n in range(4)]
    right, texts = fewshot._written(model, tokenizer, asked, FewShot(), 4)
    assert right == [True, True, False, False]
    assert texts[0] == " 7"


def test_greedy_answers_are_those_of_the_engine(model, tokenizer):
    asked = [(tokenizer.encode(text), [Example("", " x")]) for text in ("river3", "mill4 mill5")]
    _, texts = fewshot._written(model, tokenizer, asked, FewShot(), 5)
    ends = fewshot.line_ends(tokenizer)
    for (ids, _), text in zip(asked, texts, strict=True):
        [made] = generate(model, [ids], max_tokens=5, stop=ends)
        assert tokenizer.decode(made.tokens).partition("\n")[0] == text
