"""A wrong step and its correction; facts put into long documents and asked for at the end."""

import random
import re

import pytest

from etude.data.documents import Document
from etude.data.synth_chats import sft
from etude.data.synth_long_qa import FACTS, long_qa
from etude.data.tasks import draw, score
from etude.data.tasks_base import Item
from etude.data.tasks_reflect import WORD, reflected
from etude.recipe.parts import TaskMix

STEP = re.compile(r"(?:\w=)?(\d+)([+-])(\d+)=(\d+)")


def is_true(step):
    left, sign, right, result = STEP.fullmatch(step).groups()
    return int(left) + int(sign + right) == int(result)


@pytest.mark.parametrize("name", ["sum", "var"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_one_step_is_wrong_and_the_same_one_follows_rightly_behind_the_word(name, level):
    rng = random.Random(level)
    for _ in range(50):
        item = draw(name, rng, level)
        steps = reflected(item, rng).steps.split(" ")
        at = steps.index(WORD)
        wrong, right = steps[at - 1], steps[at + 1]
        assert not is_true(wrong) and is_true(right)
        assert wrong.rpartition("=")[0] == right.rpartition("=")[0]
        assert " ".join(steps[: at - 1] + steps[at + 1 :]) == item.steps
        assert score(reflected(item, rng), item.answer) == 1


def test_steps_that_are_lines_stay_lines_and_what_computes_nothing_stays_as_it_is():
    item = Item("x", 0, "?", "3", "take 4\n4 - 1 = 3\nso 3")
    lines = reflected(item, random.Random(0)).steps.split("\n")
    assert lines[0] == "take 4" and lines[2] == f"{WORD} 4 - 1 = 3" and lines[3] == "so 3"
    assert lines[1].startswith("4 - 1 = ") and lines[1] != "4 - 1 = 3"
    silent = Item("x", 0, "?", "c=2", "c=2")
    assert reflected(silent, random.Random(0)) is silent


def test_the_share_of_reflection_is_the_one_asked_for_and_none_by_default():
    def turning(share):
        tasks = {"sum": TaskMix(thinking=1.0, reflect=share)}
        chats = list(sft(tasks, 400, 0))
        return sum(WORD in chat.messages[-1]["reasoning_content"] for chat in chats) / 400

    assert turning(0.0) == 0
    assert turning(0.3) == pytest.approx(0.3, abs=0.07)
    assert turning(1.0) == 1


def test_every_question_about_a_long_document_has_its_answer_in_the_text_once():
    text = "\n".join(f"line {n} of a long text" for n in range(2000))
    documents = [Document("short", "d", "s", "a", "l"), Document(text, "d", "s", "b", "l")]
    made = list(long_qa(documents, 6, 0))
    assert len(made) == 6 and len({d.name for d in made}) == 6
    for document in made:
        told = re.findall(r"^The code of (\w+) is (\d+)\.$", document.text, re.MULTILINE)
        asked = re.findall(
            r"^Q: What is the code of (\w+)\? A: (\d+)$", document.text, re.MULTILINE
        )
        assert sorted(told) == sorted(asked) and len(dict(told)) == len(told) and len(told) in FACTS
        assert document.text.index("Q: ") > document.text.rindex("The code of")
    assert [d.text for d in long_qa(documents, 6, 0)] == [d.text for d in made]
