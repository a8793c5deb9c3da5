"""Small Python functions: the answer is code, checked on hidden examples, never executed."""

import random
from collections.abc import Callable
from typing import Any

from etude.data.tasks_base import Item, Reply, visible
from etude.data.tasks_python import PythonError, call

EXAMPLES = 6


class Code:
    """`python f(x): x times 3 plus 4`. Level 0 arithmetic, 1 conditions and text, 2 lists."""

    name = "code"
    levels = 3

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a function to write, with examples that the question does not show."""
        wanted, parameter, body, draw = rng.choice(TASKS[level])(rng)
        source = f"def f({parameter}):\n    return {body}"
        inputs = [draw() for _ in range(EXAMPLES)]
        examples = tuple((given, call(source, "f", [given])) for given in inputs)
        return Item(
            "code", level, f"python f({parameter}): {wanted}", source, data={"examples": examples}
        )

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 if the code gives the right value on every example, else 0."""
        source = code_of(visible(reply))
        try:
            return float(
                all(_equal(call(source, "f", [_copy(x)]), y) for x, y in item.data["examples"])
            )
        except PythonError:
            return 0.0


def code_of(text: str) -> str:
    """Return the code of a reply: what its first fence holds, or all of it."""
    if "```" not in text:
        return text
    inside = text.split("```")[1]
    return inside.removeprefix("python").strip("\n")


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _equal(found: Any, wanted: Any) -> bool:
    return type(found) is type(wanted) and found == wanted


Task = tuple[str, str, str, Callable[[], Any]]  # words, parameter, expression, draws an input


def _number(rng: random.Random) -> Callable[[], int]:
    return lambda: rng.randint(-20, 20)


def _word(rng: random.Random) -> Callable[[], str]:
    return lambda: "".join(rng.choices("abcde", k=rng.randint(3, 8)))


def _list(rng: random.Random) -> Callable[[], list[int]]:
    return lambda: rng.choices(range(50), k=rng.randint(2, 8))


def _linear(rng: random.Random) -> Task:
    a, b = rng.randint(2, 19), rng.randint(1, 49)
    sign, word = rng.choice((("+", "plus"), ("-", "minus")))
    return f"x times {a} {word} {b}", "x", f"x * {a} {sign} {b}", _number(rng)


def _square(rng: random.Random) -> Task:
    b = rng.randint(1, 99)
    return f"x squared plus {b}", "x", f"x * x + {b}", _number(rng)


def _larger(rng: random.Random) -> Task:
    word, name = rng.choice((("larger", "max"), ("smaller", "min")))
    b = rng.randint(-20, 20)
    return f"the {word} of x and {b}", "x", f"{name}(x, {b})", _number(rng)


def _remainder(rng: random.Random) -> Task:
    b = rng.randint(2, 19)
    return f"the remainder of x by {b}", "x", f"x % {b}", _number(rng)


def _choice(rng: random.Random) -> Task:
    at, a, b = rng.randint(-9, 9), rng.randint(1, 9), rng.randint(1, 9)
    return (
        f"x plus {a} if x is above {at} else x minus {b}",
        "x",
        f"x + {a} if x > {at} else x - {b}",
        _number(rng),
    )


def _divides(rng: random.Random) -> Task:
    a, b = rng.randint(2, 6), rng.randint(1, 9)
    return f"{b} if {a} divides x else 0", "x", f"{b} if x % {a} == 0 else 0", _number(rng)


def _letters(rng: random.Random) -> Task:
    n = rng.randint(1, 3)
    word, body = rng.choice((("first", f"s[:{n}]"), ("last", f"s[-{n}:]")))
    if rng.random() < 0.5:
        return f"the {word} {n} letters of s in capitals", "s", f"{body}.upper()", _word(rng)
    return f"the {word} {n} letters of s", "s", body, _word(rng)


def _spell(rng: random.Random) -> Task:
    n = rng.randint(2, 4)
    return f"s reversed, {n} times", "s", f"s[::-1] * {n}", _word(rng)


def _total(rng: random.Random) -> Task:
    at = rng.randint(5, 44)
    word, sign = rng.choice((("above", ">"), ("below", "<")))
    return f"the sum of xs {word} {at}", "xs", f"sum(x for x in xs if x {sign} {at})", _list(rng)


def _counted(rng: random.Random) -> Task:
    a, at = rng.randint(2, 5), rng.randint(10, 39)
    return (
        f"how many xs above {at} {a} divides",
        "xs",
        f"len([x for x in xs if x > {at} and x % {a} == 0])",
        _list(rng),
    )


def _each(rng: random.Random) -> Task:
    a, b = rng.randint(2, 19), rng.randint(1, 49)
    return f"each of xs times {a} plus {b}", "xs", f"[x * {a} + {b} for x in xs]", _list(rng)


def _sorted(rng: random.Random) -> Task:
    n = rng.randint(1, 3)
    word, body = rng.choice((("smallest", f"sorted(xs)[:{n}]"), ("largest", f"sorted(xs)[-{n}:]")))
    return f"the {n} {word} of xs, sorted", "xs", body, _list(rng)


TASKS: tuple[tuple[Callable[[random.Random], Task], ...], ...] = (
    (_linear, _square, _larger, _remainder),
    (_choice, _divides, _letters, _spell),
    (_total, _counted, _each, _sorted),
)
