"""Answers compared by value, however they are written, by a judge that may be made to hang."""

import asyncio
import time
from dataclasses import replace

import pytest

from etude.data import tasks
from etude.data.tasks import FAMILIES, Item
from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl import env_math
from etude.rl.env_math import equal, final, judge
from etude.rl.problems import Problem, check
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.turns import Message

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def box():
    with Toolbox() as made:
        yield made


def reward(box, item, reply):
    (environment,) = group(Problem(Environment(name="math"), item), 1, box)
    return asyncio.run(environment.step(Message(content=reply))).reward


@pytest.mark.parametrize("level", range(FAMILIES["math"].levels))
def test_the_written_solution_is_right_and_the_question_itself_is_not(box, level):
    for item in tasks.items("math", level, 4, 0):
        assert reward(box, item, item.answer) == 1
        assert reward(box, item, f"{item.steps}\n\\boxed{{{item.answer}}}") == 1
        bare = item.question.removeprefix("expand ").removesuffix(" = ?").removesuffix("?")
        for wrong in ("", "no idea", bare):
            assert reward(box, item, wrong) == 0
    assert reward(box, item, item.answer + "7") == 0


def item(answer, form="number"):
    return Item("math", 0, "?", answer, data={"form": form})


@pytest.mark.parametrize(
    ("wanted", "form", "reply", "right"),
    [
        ("1/2", "number", "0.5", 1),
        ("1/2", "number", r"so \boxed{\frac{1}{2}}, done", 1),
        ("1/2", "number", "the answer is $2/4$.", 1),
        ("1/2", "number", "1/3 + 1/6", 0),  # true, and not finished
        ("1/2", "number", "0.51", 0),
        ("x = 5/3", "number", "Answer: 10/6", 1),
        ("x = 5/3", "number", "x = 3/5", 0),
        ("12", "number", "24/2", 1),
        ("x^2 + 5x + 6", "sum", "6 + 5*x + x**2", 1),
        ("x^2 + 5x + 6", "sum", "(x + 2)(x + 3)", 0),
        ("x^2 + 5x + 6", "sum", "x^2 + 6x + 5", 0),
        ("-1, 3", "numbers", "x = 3 or x = -1", 1),
        ("-1, 3", "numbers", "3", 0),
    ],
)
def test_an_answer_counts_by_value_once_it_is_finished(box, wanted, form, reply, right):
    assert reward(box, item(wanted, form), reply) == right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1", r"\boxed{1"),
        ("the answer is 3. no: the answer is 4.", "4"),
        ("first\n\n x = 7 \n", "x = 7"),
        ("", ""),
    ],
)
def test_the_last_answer_is_the_one_that_counts(text, answer):
    assert final(text) == answer


def test_a_comparison_that_hangs_is_ended_and_the_judge_goes_on(monkeypatch):
    handler = "def handle(request):\n    while request['pair'][1] == 'hang': pass\n    yield True"
    monkeypatch.setattr(env_math, "HANDLER", handler)
    monkeypatch.setattr(env_math, "LIMITS", replace(env_math.LIMITS, seconds=0.5))
    pool = judge()
    began = time.monotonic()
    assert not equal(pool, "7", "hang")
    assert time.monotonic() - began < env_math.LIMITS.seconds + 1
    assert equal(pool, "7", "8") and pool.started == 1
    pool.close()


def test_a_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(env_math, "find_spec", lambda name: None)
    with pytest.raises(
        EtudeError, match=r"math-verify is not installed; pip install 'etude\[rl\]'"
    ):
        check([Environment(name="math")])


def test_wishes_that_it_cannot_grant_are_refused():
    with pytest.raises(EtudeError, match="one turn, its outcome, no knobs"):
        check([Environment(name="math", turns=2)])
