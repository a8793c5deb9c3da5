"""Functions of Python's standard library as tools: their own names, arguments and first lines.

Kimi K2 starts from the schemas of thousands of real tools (arXiv:2507.20534, section 3.1.1). Here
they are read from signatures and docstrings of functions that any Python has, which are pure, so
that a call can be made for real and its result checked.
"""

import importlib
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Draw = Callable[[random.Random], Any]


def _number(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


SYLLABLES = ("ka", "lo", "mi", "ru", "se", "to", "vi", "na", "pe", "du")


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=2))


def _path(rng: random.Random) -> str:
    return f"{_word(rng)}/{_word(rng)}.txt"


def _phrase(rng: random.Random) -> str:
    return f"{_word(rng)} {_word(rng)}"


def _tagged(rng: random.Random) -> str:
    return f"<{_word(rng)}>"


@dataclass(frozen=True, slots=True)
class Real:
    """One function as a tool.

    Attributes:
        path: module and name.
        arguments: how to draw each argument that a call gives, in order.
        asked: wordings of a question, with the arguments in braces.
    """

    path: str
    arguments: dict[str, Draw]
    asked: tuple[str, ...]

    @property
    def name(self) -> str:
        """As it is called: module and name joined by `_`, which every format can write."""
        return self.path.replace(".", "_")

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)

    def call(self, **arguments: Any) -> str:
        """Call it; what it raises is told in one line that begins with `error:`."""
        try:
            return str(self.function(*(arguments[name] for name in self.arguments)))
        except (ArithmeticError, TypeError, ValueError) as error:
            return f"error: {str(error)[:80]}"

    def description(self) -> str:
        """First line of its docstring."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]

    def parameters(self) -> dict[str, Any]:
        """JSON schema of its arguments, named as in its signature.

        Raises:
            ValueError: the signature of this Python does not take what the table gives.
        """
        names = list(inspect.signature(self.function).parameters)[: len(self.arguments)]
        if names != list(self.arguments):
            raise ValueError(f"{self.path}: takes {names}, not {list(self.arguments)}")
        rng = random.Random(0)
        kinds = {name: type(draw(rng)) for name, draw in self.arguments.items()}
        properties = {name: {"type": JSON[kind]} for name, kind in kinds.items()}
        return {"type": "object", "properties": properties, "required": names}


JSON = {int: "integer", str: "string"}
REAL: dict[str, Real] = {
    real.name: real
    for real in (
        Real("math.comb", {"n": _number(3, 20), "k": _number(1, 4)}, ("choose {k} of {n}",)),
        Real("math.perm", {"n": _number(3, 12), "k": _number(1, 3)}, ("orders of {k} of {n}",)),
        Real("math.isqrt", {"n": _number(10, 999)}, ("root of {n}", "whole root of {n}")),
        Real("math.factorial", {"n": _number(2, 12)}, ("factorial of {n}", "{n}!")),
        Real("operator.mod", {"a": _number(10, 99), "b": _number(2, 9)}, ("{a} mod {b}",)),
        Real("operator.floordiv", {"a": _number(10, 99), "b": _number(2, 9)}, ("{a} div {b}",)),
        Real("operator.xor", {"a": _number(1, 63), "b": _number(1, 63)}, ("{a} xor {b}",)),
        Real("calendar.isleap", {"year": _number(1900, 2099)}, ("is {year} a leap year",)),
        Real(
            "calendar.leapdays",
            {"y1": _number(1900, 1999), "y2": _number(2000, 2099)},
            ("leap days from {y1} to {y2}",),
        ),
        Real(
            "calendar.weekday",
            {"year": _number(1990, 2039), "month": _number(1, 12), "day": _number(1, 28)},
            ("weekday of {year}-{month}-{day}",),
        ),
        Real("string.capwords", {"s": _phrase}, ("capitals for {s}",)),
        Real("posixpath.basename", {"p": _path}, ("file name of {p}",)),
        Real("posixpath.dirname", {"p": _path}, ("folder of {p}",)),
        Real("html.escape", {"s": _tagged}, ("escape {s} for html",)),
        Real("shlex.quote", {"s": _phrase}, ("quote {s} for a shell",)),
    )
}
