"""Knobs of reasoning-gym: what they change, and what is told where they are wrong."""

import random

import pytest

from etude.data import tasks
from etude.data.synth_chats import sft
from etude.data.tasks import draw, family, score
from etude.errors import EtudeError
from etude.recipe.parts import Environment, TaskMix

pytest.importorskip("reasoning_gym")

NAME = "rg:spell_backward"
SHORT = {"min_word_len": 3, "max_word_len": 4}


def lengths(**how):
    ask = Environment(name=NAME, **how)
    found = [draw(NAME, random.Random(n), 0, tuning=ask.tuning) for n in range(60)]
    assert all(score(item, item.answer) == 1 for item in found)
    return {len(item.answer) for item in found}


def test_knobs_set_the_generator_and_attributes_its_curriculum():
    assert lengths(knobs=SHORT) == {3, 4}
    plain, longer = lengths(), lengths(attributes={"word_len": 3})
    assert max(plain) < max(longer)
    assert max(lengths(attributes={"word_len": 3}, knobs={"max_word_len": 5})) == 5  # knobs rule


def test_conversations_are_made_with_the_same_knobs():
    made = list(sft({NAME: TaskMix(knobs=SHORT)}, 40, 0, thinking=0.0))
    assert {len(chat.messages[-1]["content"]) for chat in made} == {3, 4}


def test_a_partial_reward_counts_nothing_below_the_threshold():
    """Of this generator a word with one wrong letter gets the share of the others."""
    strict, lenient = (draw(NAME, random.Random(0), 0, tuning=t) for t in ({}, {"threshold": 0.5}))
    near = strict.answer[:-1] + "#"
    assert strict.question == lenient.question and len(near) > 2
    assert (score(strict, near), score(lenient, near)) == (0.0, 1.0)
    assert score(lenient, "#" * 9) == 0.0


def test_spelling_overlooks_case_since_its_generator_does():
    item = draw(NAME, random.Random(0), 0)
    assert score(item, item.answer.swapcase()) == 1
    assert score(item, item.answer[::-1] + "x") == 0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"knobs": {"min_word_ln": 3}}, r"knobs.min_word_ln: .*did you mean min_word_len\?"),
        ({"knobs": {"seed": 3}}, "knobs.seed: no such knob"),
        ({"knobs": {"min_word_len": -1}}, "min_word_len must be positive"),
        ({"attributes": {"word_ln": 1}}, r"attributes.word_ln: .*did you mean word_len\?"),
        ({"attributes": {"word_len": 99}}, "Invalid level: 99"),
    ],
)
def test_a_wrong_knob_is_told_in_one_line(how, words):
    with pytest.raises(EtudeError, match=words):
        draw(NAME, random.Random(0), 0, tuning=Environment(name=NAME, **how).tuning)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unti", r"did you mean unit\?"),
        ("verifers:gsm8k", r"did you mean verifiers:\?"),
        ("rgs:gcd", r"did you mean rg:\?"),
    ],
)
def test_a_wrong_name_gives_the_closest(name, words):
    with pytest.raises(EtudeError, match=words):
        family(name)


def test_families_without_knobs_say_so():
    with pytest.raises(EtudeError, match="task sort: knobs given, expected only with rg:NAME"):
        tasks.family("sort", {"knobs": {"a": 1}})
