"""Code with unit tests: judged by what it does, in a sandbox, and only its own attempt pays."""

import asyncio
import json
import random
import time
from functools import cache

import pytest

from etude.data import tasks
from etude.data.tasks import FAMILIES
from etude.data.tasks_python import call
from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl.problems import Problem, check, draw
from etude.rl.sandbox_pool import Pool
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.turns import Message
from tests.rl.test_sandbox import LIMITS, started

LEVELS = range(FAMILIES["unit"].levels)
ASK = Environment(name="unit", levels=dict.fromkeys(LEVELS, 1.0))


@pytest.fixture(scope="module")
def box():
    started(LIMITS).close()  # or the tests are left out
    with Toolbox() as made:
        yield made


def play(box, item, *replies, **how):
    ask = Environment(name="unit", **how)
    (environment,) = group(Problem(ask, item), 1, box)

    async def turns():
        await environment.start()
        return [await environment.step(Message(content=reply)) for reply in replies]

    return asyncio.run(turns())


@cache
def items(level):
    return tasks.items("unit", level, 12, 0)


@pytest.mark.parametrize("level", LEVELS)
def test_the_written_solution_passes_and_others_do_not(box, level):
    for item in items(level)[:2]:
        assert play(box, item, item.answer)[0].reward == 1
        assert play(box, item, f"```python\n{item.answer}\n```")[0].reward == 1
        for wrong in (
            "",
            "def f(*a):\n    return None",
            "assert True",
            "def f(",
            "raise AssertionError",
        ):
            assert play(box, item, wrong)[0].reward == 0


def test_any_code_that_does_the_same_is_right_with_all_of_the_language(box):
    item = next(i for i in items(2) if "how often" in i.question)
    letter, times = item.question.split()[4], item.question.split()[-1]
    body = f"    from collections import Counter\n    return Counter(s)[{letter!r}] * {times}"
    assert play(box, item, f"def f(s):\n{body}")[0].reward == 1


def test_the_type_counts_too(box):
    item = next(i for i in items(0) if " times " in i.question and "f(x)" in i.question)
    assert play(box, item, item.answer.replace("return ", "return 1.0 * "))[0].reward == 0


def test_a_share_of_the_tests_can_be_paid(box):
    item = next(i for i in items(0) if "f(x)" in i.question)
    (given, value), *_ = item.data["tests"]
    half = f"def f(x):\n    return {value} if x == {given[0]} else None"
    assert play(box, item, half)[0].reward == 0
    paid = play(box, item, half, reward="share")[0]
    assert paid.reward == pytest.approx(1 / len(item.data["tests"]))
    assert (paid.info["passed"], paid.info["tests"]) == (1, len(item.data["tests"]))


def test_a_test_that_is_late_fails_and_those_before_it_stand(box):
    item = next(i for i in items(0) if "f(x)" in i.question)
    (first, _), *_ = item.data["tests"]
    source = item.answer.replace("    return", f"    while x != {first[0]}: pass\n    return")
    knobs = {"cpu_seconds": 0.2, "seconds": 1.0}
    assert play(box, item, source, reward="share", knobs=knobs)[0].info["passed"] == 1


def test_written_tests_must_pass_on_the_right_code_and_catch_every_fault(box):
    item = next(i for i in items(4) if len(i.data["faults"]) > 1)
    loose = item.answer.split("\n")[0].split(" == ")[0]  # asserts that something comes back
    assert play(box, item, loose + " is not None")[0].reward == 0
    assert play(box, item, item.answer + "\nassert False")[0].reward == 0
    assert play(box, item, "f(1, 2, 3, 4)")[0].reward == 0


def test_with_a_second_turn_the_policy_hears_what_failed_and_never_what_is_wanted(box):
    item = next(i for i in items(0) if "f(x)" in i.question)
    told, ended = play(box, item, "def f(x):\n    return 'no'", item.answer, turns=2)
    (message,) = told.messages
    assert not told.done and message["role"] == "user" and "'no' is wrong" in message["content"]
    assert not any(
        repr(value) in message["content"].split(": ")[1] for _, value in item.data["tests"]
    )
    assert ended.done and ended.reward == 1


def test_wanted_values_never_enter_the_sandbox(box, monkeypatch):
    sent: list[str] = []
    ask = Pool.ask
    monkeypatch.setattr(Pool, "ask", lambda self, r: sent.append(json.dumps(r)) or ask(self, r))
    item = next(i for i in items(0) if " times " in i.question and "f(x)" in i.question)
    big = {"kind": "write", "tests": tuple((given, 987654) for given, _ in item.data["tests"])}
    play(box, tasks.Item("unit", 0, item.question, "", data=big), item.answer)
    assert sent and not any("987654" in text for text in sent)


def test_hostile_code_costs_its_own_attempt_alone(box):
    item = next(i for i in items(0) if "f(x)" in i.question)
    knobs = {"cpu_seconds": 0.2, "seconds": 0.5}
    hostile = ["while True: pass", "import os\nos.kill(-1, 9)", "while 1: print('x' * 9999)"]
    ask = Environment(name="unit", knobs=knobs)
    made = group(Problem(ask, item), 6, box)
    replies = [text for bad in hostile for text in (bad, item.answer)]

    async def all_of_them():
        steps = [one.step(Message(content=reply)) for one, reply in zip(made, replies, strict=True)]
        return await asyncio.gather(*steps)

    began = time.monotonic()
    assert [outcome.reward for outcome in asyncio.run(all_of_them())] == [0, 1, 0, 1, 0, 1]
    assert time.monotonic() - began < 10


def test_the_split_holds_for_a_function_in_every_form():
    sides = [{p.item.key for p in draw([ASK], 60, 0, held_out=held)} for held in (False, True)]
    assert all(sides) and not sides[0] & sides[1]


def test_repairs_differ_in_one_place_and_fail_some_test():
    for item in tasks.items("unit", 3, 12, 0):
        faulty = item.question.split("\n", 1)[1]
        changed = [a != b for a, b in zip(faulty.split("\n"), item.answer.split("\n"), strict=True)]
        assert sum(changed) == 1
        values = [call(faulty, "f", list(given)) for given, _ in item.data["tests"]]
        assert values != [wanted for _, wanted in item.data["tests"]]


def test_wishes_that_it_cannot_grant_are_refused_in_one_line():
    with pytest.raises(EtudeError, match=r"knobs.secnds: no such limit, .*did you mean seconds\?"):
        check([Environment(name="unit", knobs={"secnds": 1})])
    with pytest.raises(EtudeError, match=r"knobs.seconds: -1, expected a number above 0"):
        check([Environment(name="unit", knobs={"seconds": -1})])
    with pytest.raises(EtudeError, match="reward: step, expected outcome or share"):
        check([Environment(name="unit", reward="step")])
    with pytest.raises(EtudeError, match="reward: share, expected only with unit"):
        check([Environment(name="sort", reward="share")])
    with pytest.raises(EtudeError, match="can only be run"):
        tasks.score(tasks.draw("unit", random.Random(0), 0), "")


def test_without_a_sandbox_the_environment_refuses_to_start(monkeypatch):
    def none():
        raise EtudeError("sandbox", "bubblewrap (bwrap) is not installed")

    monkeypatch.setattr("etude.rl.sandbox.find", none)
    with pytest.raises(EtudeError, match="bwrap"):
        check([ASK])
    with Toolbox() as box, pytest.raises(EtudeError, match="bwrap"):
        play(box, tasks.draw("unit", random.Random(0), 0), "print('bare')")
