"""Agent trajectories: conversations in which tools are called and their results are used.

GLM-4.5's third mid-training stage reads such trajectories beside long documents (arXiv:2508.06471,
section 2.3). Results come from the real tools.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

from etude.data.synth_chats import Chat, assistant, exchange, line, solution, user
from etude.data.tasks import FAMILIES, draw, held_out
from etude.data.tasks_base import Item
from etude.data.tasks_tool import FORMS
from etude.data.tools import CALCULATOR, bind

TRIES = 50


def agent(count: int, seed: int, *, held: bool = False) -> Iterator[Chat]:
    """Yield trajectories: one call, several, the right one of two tools, an error, no call at all.

    Args:
        count: how many.
        seed: decides all of them.
        held: build on held-out questions instead, for evaluation.
    """
    rng = random.Random(seed)
    kinds, weights = zip(*KINDS, strict=True)
    for _ in range(count):
        yield rng.choices(kinds, weights)[0](rng, held)


def _one(rng: random.Random, held: bool) -> Chat:
    return solution(draw("calc", rng, rng.randrange(3), held=held), thinking=False)


def _trail(rng: random.Random, held: bool) -> Chat:
    return solution(draw("lookup", rng, rng.randrange(4), held=held), thinking=False)


def _which(rng: random.Random, held: bool) -> Chat:
    """Both tools are on offer; the question needs one."""
    name, other = rng.sample(("calc", "lookup"), 2)
    item = draw(name, rng, rng.randrange(2), held=held)
    chat = solution(item, thinking=False)
    more = [tool.schema() for tool in bind(FAMILIES[other].sample(rng, 0).tools)]
    tools = [*chat.tools, *more]
    return Chat(chat.messages, rng.sample(tools, len(tools)), thinking=False)


def _follow_up(rng: random.Random, held: bool) -> Chat:
    """The second question speaks of the first answer."""
    first = draw("calc", rng, 0, held=held)
    sign, word = rng.choice((("+", "plus"), ("-", "minus"), ("*", "times")))
    second = _sum(rng, held, lambda: f"{first.answer}{sign}{rng.randint(2, 99)}")
    chat = solution(first, thinking=False)
    asked = f"and {word} {second.rpartition(sign)[2]}?"
    return Chat([*chat.messages, *_worked(asked, second)], chat.tools)


def _mistake(rng: random.Random, held: bool) -> Chat:
    """The tool cannot do what is asked, and the model says so."""
    expression = f"{rng.randint(2, 999)}/0"
    asked = user(rng.choice(FORMS).format(expression))
    result = CALCULATOR.call(expression=expression)
    said = assistant(f"I cannot: {result.removeprefix('error: ')}.")
    turns = [asked, *exchange("calculator", {"expression": expression}, result), said]
    return Chat(turns, [CALCULATOR.schema()])


def _idle(rng: random.Random, held: bool) -> Chat:
    """A tool is on offer and small talk needs none."""
    return Chat(line(rng, thinking=False).messages, [CALCULATOR.schema()])


def _worked(asked: str, expression: str) -> list[dict[str, Any]]:
    result = CALCULATOR.call(expression=expression)
    calls = exchange("calculator", {"expression": expression}, result)
    return [user(asked), *calls, assistant(result)]


def _sum(rng: random.Random, held: bool, make: Callable[[], str]) -> str:
    """An expression from the wanted side of the held-out split of `calc`."""
    expression = make()
    for _ in range(TRIES):
        if held_out(Item("calc", 0, "", "", key=expression)) == held:
            break
        expression = make()
    return expression


KINDS: tuple[tuple[Callable[[random.Random, bool], Chat], float], ...] = (
    (_one, 4.0),
    (_trail, 4.0),
    (_which, 2.0),
    (_follow_up, 2.0),
    (_mistake, 0.5),
    (_idle, 0.5),
)
