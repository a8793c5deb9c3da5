"""Associative recall: what a model that knows, and one that guesses, are found to know."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from etude.data.synth_recall import AGAIN, recall
from etude.data.tasks_recall import Recall
from etude.evals.recall import recalled
from etude.text.chat import new_tokenizer

WORDS = new_tokenizer([" " + " ".join("abcdefghijklmnopqrstuvwxyz")] * 50, 400)

DIGITS = {WORDS.encode(str(digit))[0] for digit in range(10)}


class Fake:
    """A model by a rule: from the ids so far to the id it guesses."""

    def __init__(self, rule):
        self.rule, self.embed = rule, SimpleNamespace(weight=torch.zeros(1))

    def __call__(self, ids):
        guesses = [[self.rule(row[: n + 1]) for n in range(len(row))] for row in ids.tolist()]
        return F.one_hot(torch.tensor(guesses), WORDS.vocab_size).float()


def behind_the_first_like_it(seen):
    places = [n for n in range(len(seen) - 1) if seen[n] == seen[-1]]
    return seen[places[0] + 1] if places else 0


def pairs(document):
    orders = document.text.removeprefix("recall: ").strip().split(" | ")
    return [order.split() for order in orders]


def test_every_value_that_is_repeated_is_known_from_the_first_time():
    for document in recall(30, 0):
        first, *later = pairs(document)
        assert len({pair[0] for pair in first}) == len(first) in Recall.pairs
        assert len(later) == AGAIN
        assert all(sorted(line) == sorted(first) for line in later)


def test_levels_have_about_as_many_tokens_each_and_no_order_is_the_same():
    made = [pairs(document) for document in recall(600, 0)]
    sizes = [sum(n for lines in made if (n := len(lines[0])) == size) for size in Recall.pairs]
    assert max(sizes) < 1.5 * min(sizes)
    long = [lines for lines in made if len(lines[0]) == 8]
    assert all(len({tuple(line) for line in lines}) == 1 + AGAIN for lines in long)


def test_nothing_that_is_asked_was_trained_on():
    train = {tuple(pairs(d)[0]) for d in recall(300, 0)}
    held = {tuple(pairs(d)[0]) for d in recall(300, 0, held=True)}
    assert not train & held


def test_a_model_that_looks_up_knows_all_and_one_that_guesses_a_tenth():
    found = recalled(Fake(behind_the_first_like_it), WORDS, count=20)
    assert {n: one.value for n, one in found.items()} == dict.fromkeys(Recall.pairs, 1.0)
    seven = WORDS.encode("7")[0]
    guessed = recalled(Fake(lambda seen: seven), WORDS, count=400)
    # 3,200 values at 8 pairs: standard error 0.005
    assert guessed[8].value == pytest.approx(0.1, abs=0.03)


def test_a_model_that_remembers_few_pairs_is_found_out():
    bar = WORDS.encode(" |")[-1]

    def of_the_last_two(seen):
        """Knows only the last two keys of the first time."""
        given = seen[: seen.index(bar)] if bar in seen else []
        while given and given[-1] not in DIGITS:
            given.pop()  # the space of the bar, where the vocabulary has no such token
        return behind_the_first_like_it([*given[-4:], seen[-1]])

    found = recalled(Fake(of_the_last_two), WORDS, count=100)
    assert found[2].value == 1.0
    assert found[8].value == pytest.approx(2 / 8, abs=1e-9)
