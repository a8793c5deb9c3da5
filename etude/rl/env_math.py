"""The environment `math`: answers compared by value with math-verify, in a process that may hang.

The package's own time limit uses signals, which work in a main thread only, and a tower of powers
or a nest of brackets can outlast any. So each comparison runs in a child of a warm worker, which is
ended when it is late: reward 0 for that attempt, and nothing else happens.
"""

import asyncio
import os
import random
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from etude.data import tasks
from etude.data.tasks_base import Item, visible
from etude.data.tasks_math import finished
from etude.errors import EtudeError
from etude.recipe.parts import Environment as Ask
from etude.rl.environment import Environment, Outcome, Start
from etude.rl.problems import Problem
from etude.rl.sandbox_pool import Limits, Pool
from etude.rl.tasks import opening
from etude.rl.toolbox import Toolbox
from etude.text.turns import Message

LIMITS = Limits(seconds=5.0, cpu_seconds=1.0, memory_bytes=2 << 30, processes=None)
LONGEST = 200  # characters of an answer that is read at all

# Only LaTeX is parsed: the package reads plain expressions with sympy's parser, which evaluates
# Python. The first comparisons fill caches that every child then inherits.
HANDLER = r"""
import logging
logging.disable(logging.CRITICAL)
from math_verify import LatexExtractionConfig, parse, verify

def value(text):
    return parse("\\boxed{" + text + "}", [LatexExtractionConfig()], parsing_timeout=None)

def equal(gold, text):
    return bool(verify(value(gold), value(text), timeout_seconds=None))

def handle(request):
    yield equal(*request["pair"])

for pair in (("5/6", "x = 0.5"), ("x^2 + 2x - 3", "(x+3)(x-1)"), ("-1, 2", "2, -1")):
    equal(*pair)
"""


class MathEnvironment:
    """One attempt at a question of the family `math`.

    Args:
        item: question, answer, and the form of a finished one.
        judge: compares values, see `equal`.
        thinking: whether the policy may reason first.
    """

    def __init__(self, item: Item, judge: Pool, *, thinking: bool = False):
        self.item, self.judge, self.thinking = item, judge, thinking

    async def start(self) -> Start:
        """Ask the question."""
        return opening(self.item, thinking=self.thinking)

    async def step(self, reply: Message) -> Outcome:
        """Compare what the reply ends in with the answer."""
        text = final(visible(reply))
        info: dict[str, str] = {"answer": text[:LONGEST]}
        if not finished(self.item, text):
            return Outcome(info=info | {"failed": "no finished answer"})
        right = await asyncio.to_thread(equal, self.judge, self.item.answer, text)
        return Outcome(reward=float(right), info=info)


def final(text: str) -> str:
    r"""Return the answer that a text ends in, without what surrounds it.

    The last `\boxed{...}`; else what follows the last `answer is` or `answer:`; else the last line.
    """
    box = _boxed(text)
    if box is None:
        box = re.split(r"(?i)\banswer(?: is|:)", text)[-1].strip().rpartition("\n")[2]
    return box.strip().removesuffix(".").strip("$ ").removeprefix("\\(").removesuffix("\\)").strip()


def _boxed(text: str) -> str | None:
    at = text.rfind("\\boxed{")
    if at < 0:
        return None
    depth, begin = 1, at + len("\\boxed{")
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[begin:place]
    return None


def equal(judge: Pool, wanted: str, text: str) -> bool:
    """Return whether two answers have one value; an answer that cannot be compared has another.

    Raises:
        EtudeError: the worker cannot be started.
    """
    if text == wanted:
        return True
    if not text or len(text) > LONGEST:
        return False
    reply = judge.ask({"pair": [wanted.replace("**", "^"), text.replace("**", "^")]})
    return reply.end == "done" and list(reply.values) == [True]


def judge() -> Pool:
    """Return workers that compare.

    Raises:
        EtudeError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        do = "pip install 'etude[rl]'"
        raise EtudeError("environment math", "math-verify is not installed", do=do)
    return Pool("math-verify", [sys.executable], HANDLER, LIMITS, env=os.environ)


def ready(ask: Ask) -> None:
    """Make sure that answers can be compared.

    Raises:
        EtudeError: math-verify is not installed, or the recipe asks for what `math` has not.
    """
    if ask.reward != "outcome" or ask.turns > 1 or ask.knobs:
        found = f"reward: {ask.reward}, turns: {ask.turns}, knobs: {ask.knobs}"
        raise EtudeError("environment math", found, "one turn, its outcome, no knobs")
    judge().close()


def draw(ask: Ask, rng: random.Random, level: int, *, held: bool) -> Item:
    """Draw a question."""
    return tasks.draw("math", rng, level, held=held)


def group(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
) -> Sequence[Environment]:
    """Return `count` environments over one judge, which ends with the toolbox.

    Raises:
        EtudeError: math-verify is not installed.
    """
    shared, thinking = toolbox.keep("math-verify", judge), problem.environment.thinking
    return [MathEnvironment(problem.item, shared, thinking=thinking) for _ in range(count)]
