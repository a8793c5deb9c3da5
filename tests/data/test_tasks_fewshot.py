"""Tasks by examples: the paper's prompts, right answers, and what may be an example of what."""

import random
import re

import pytest

from etude.data.synth_maps import RULES, SYMBOLS, answered, maps
from etude.data.tasks_fewshot import (
    ARITHMETIC,
    NAMES,
    SCRAMBLING,
    Materials,
    arithmetic,
    frequent_words,
    scrambled,
    task,
)
from etude.errors import EtudeError

TEXTS = [" ".join(f"{a}{b}" for a in ("market", "window", "garden") for b in "abcdefgh") * 3] * 2
PASSAGES = [" ".join(f"{stem}{n}" for n in range(60)) for stem in ("red", "sea", "oak", "hill")]
MATERIALS = Materials(lambda: TEXTS, lambda: PASSAGES)


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_arithmetic_reads_as_in_the_paper_and_its_answers_are_right(kind):
    for seed in range(40):
        example = arithmetic(kind, random.Random(seed))
        inside = re.fullmatch(r"Q: What is (.*)\?\nA:", example.prompt).group(1)
        for word, sign in (("plus", "+"), ("minus", "-"), ("times", "*")):
            inside = inside.replace(word, sign)
        assert example.answer == f" {eval(inside)}"
        assert re.fullmatch(r"[\d+*() -]+", inside)


def test_operands_have_up_to_as_many_digits_as_the_name_says():
    seen = [
        int(number)
        for seed in range(300)
        for number in re.findall(r"\d+", arithmetic("3D+", random.Random(seed)).prompt)
    ]
    assert max(seen) < 1000
    assert max(seen) > 900
    assert min(seen) < 100  # the paper draws from [0, 1000)


def test_one_digit_composite_has_two_operations_on_three_single_digits():
    for seed in range(40):
        prompt = arithmetic("1DC", random.Random(seed)).prompt
        assert len(re.findall(r"\d", prompt)) == 3
        assert len(re.findall(r"[+*]|(?<= )-(?= )", prompt)) == 2


def test_scrambling_follows_the_five_rules():
    rng, word = random.Random(0), "bandwidth"
    assert scrambled("RW", word, rng) == "htdiwdnab"
    assert scrambled("CL", word, rng) in {word[n:] + word[:n] for n in range(1, len(word))}
    for kind, edge in (("A1", 1), ("A2", 2)):
        found = scrambled(kind, word, rng)
        assert (found[:edge], found[-edge:]) == (word[:edge], word[-edge:])
        assert sorted(found) == sorted(word)
    inserted = scrambled("RI", word, rng)
    assert inserted[::2] == word
    assert not re.search(r"\w", inserted[1::2])


def test_the_words_are_the_frequent_ones_of_five_to_fourteen_letters():
    texts = ["this thing thing other four", "thing other Upper"]
    assert frequent_words(texts) == ["thing", "other"]


@pytest.mark.parametrize("name", NAMES)
def test_a_question_is_never_among_its_examples_and_depends_on_its_seed_alone(name):
    of = task(name, MATERIALS)
    for seed in range(20):
        *examples, asked = of.episode(random.Random(seed), 6)
        assert len(examples) == 6
        assert asked.prompt not in [one.prompt for one in examples]
        assert asked.answer.startswith(" ")
        assert not asked.prompt.endswith(" ")
        assert of.episode(random.Random(seed), 6)[-1] == asked


@pytest.mark.parametrize("name", NAMES)
def test_more_examples_are_added_behind_the_fewer(name):
    of = task(name, MATERIALS)
    few, many = (of.episode(random.Random(3), shots) for shots in (2, 5))
    assert few[-1] == many[-1]
    assert few[:2] == many[:2]


def test_a_question_may_be_none_of_the_examples_of_any_other():
    of = task("2D-", MATERIALS)
    episodes = [of.episode(random.Random(seed), 8) for seed in range(50)]
    asked = {episode[-1].prompt for episode in episodes}
    assert not asked & {one.prompt for episode in episodes for one in episode[:-1]}


def test_only_scrambling_has_an_instruction():
    told = {name for name in NAMES if task(name, MATERIALS).instruction}
    assert told == set(SCRAMBLING)


def test_the_right_choice_is_among_the_choices_once():
    for name in ("maps", "continuation"):
        for seed in range(20):
            asked = task(name, MATERIALS).episode(random.Random(seed), 1)[-1]
            assert asked.choices.count(asked.answer) == 1


def test_an_episode_of_maps_follows_one_rule():
    for seed in range(20):
        examples = task("maps", MATERIALS).episode(random.Random(seed), 6)
        fits = [
            rule for rule in RULES if all(answered(rule, e.prompt) == e.answer for e in examples)
        ]
        assert fits


def test_lists_of_maps_follow_one_rule_each_and_all_eight_occur():
    found = set()
    for document in maps(64, 0):
        lines = [(line[0], line[1:]) for line in document.text.splitlines()]
        [rule] = [r for r in RULES if all(answered(r, a) == b for a, b in lines)]
        found.add(rule)
        assert {letter for letter, _ in lines} <= set(SYMBOLS)
    assert found == set(RULES)


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(EtudeError, match="did you mean continuation"):
        task("continuations", MATERIALS)
