"""Tools that a model may call: what they are called, what they take, and what they answer.

A tool never raises at its caller: a wrong call is answered with one line that begins with `error:`,
which the model reads like any other result.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from etude.data.graph import find
from etude.data.tools_real import REAL, Real
from etude.data.tools_served import SCHEMAS
from etude.errors import EtudeError, closest

MAX_EXPRESSION = 200  # characters
MAX_DEPTH = 40  # nested operations
MAX_BITS = 256  # of any whole number on the way

Number = int | float


@dataclass(frozen=True, slots=True)
class Tool:
    """A callable with the description that a model is shown.

    Attributes:
        name: as called.
        description: one sentence.
        parameters: JSON schema of the arguments, an object.
        function: takes the arguments by name and returns text.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., str]

    def schema(self) -> dict[str, Any]:
        """Return the tool as chat templates and OpenAI-shaped requests show it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}

    def call(self, **arguments: Any) -> str:
        """Check the arguments and return the tool's answer, or one line that says what is wrong."""
        problem = self.problem(arguments)
        return f"error: {problem}" if problem else self.function(**arguments)

    def problem(self, arguments: Mapping[str, Any]) -> str:
        """Return what is wrong with the arguments of a call; empty where nothing is."""
        known = self.parameters["properties"]
        for name in self.parameters.get("required", ()):
            if name not in arguments:
                return f"{self.name} needs {name}"
        for name, value in arguments.items():
            if name not in known:
                return f"{self.name} takes no {name}"
            kind = known[name].get("type", "string")
            if not isinstance(value, _TYPES[kind]) or (
                isinstance(value, bool) and kind != "boolean"
            ):
                return f"{name} must be a {kind}"
        return ""


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class _Wrong(Exception):
    """What the calculator says after `error:`."""


def calculate(expression: str) -> str:
    """Return the value of an arithmetic expression, exact for whole numbers, else with ten digits.

    Understands `+ - * / // % **`, brackets and numbers; nothing is executed. Anything else, and
    anything too large, is answered with a line that begins with `error:`.
    """
    if len(expression) > MAX_EXPRESSION:
        return f"error: more than {MAX_EXPRESSION} characters"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body, MAX_DEPTH)
        return str(value) if isinstance(value, int) else f"{value:.10g}"
    except _Wrong as wrong:
        return f"error: {wrong}"
    except ZeroDivisionError:
        return "error: division by zero"
    except OverflowError:
        return "error: the number is too large"
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "error: not an arithmetic expression"


def _divide(a: Number, b: Number) -> Number:
    exact = isinstance(a, int) and isinstance(b, int) and b and a % b == 0
    return a // b if exact else a / b


def _power(a: Number, b: Number) -> Number:
    size = a.bit_length() if isinstance(a, int) else 1
    if abs(b) * max(size, 1) > MAX_BITS:
        raise _Wrong("the number is too large")
    value = a**b
    if isinstance(value, complex):
        raise _Wrong("no real number")
    return value


_OPERATORS: dict[type, Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _value(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise _Wrong("too many nested operations")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            result: Number = value
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            result = -_value(inner, depth - 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            result = _value(inner, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            result = _OPERATORS[type(op)](_value(left, depth - 1), _value(right, depth - 1))
        case _:
            raise _Wrong("only numbers, + - * / // % ** and brackets")
    large = result.bit_length() > MAX_BITS if isinstance(result, int) else not isfinite(result)
    if large:
        raise _Wrong("the number is too large")
    return result


def _text(description: str) -> dict[str, str]:
    return {"type": "string", "description": description}


def _object(**properties: dict[str, str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


CALCULATOR = Tool(
    "calculator",
    "Compute an arithmetic expression.",
    _object(expression=_text("e.g. 12*7")),
    calculate,
)


def lookup(pages: Mapping[str, str]) -> Tool:
    """Return a tool that opens the pages of one small world, by name."""

    def read(page: str) -> str:
        return pages.get(page.strip(), f"error: no page {page.strip()[:20]}")

    return Tool("lookup", "Open a page.", _object(page=_text("its number")), read)


def real(of: Real) -> Tool:
    """Return a function of the standard library as a tool."""
    return Tool(of.name, of.description(), of.parameters(), of.call)


def search(pages: Mapping[str, str]) -> Tool:
    """Return a tool that searches the pages of one small world."""
    return Tool("search", "Find pages.", _bare("query"), lambda query: find(dict(pages), query))


def open_page(pages: Mapping[str, str]) -> Tool:
    """Return a tool that opens the pages of one small world by the names that `search` gives."""

    def read(page: str) -> str:
        return pages.get(page.strip(), f"error: no page {page.strip()[:20]}")

    return Tool("open", "Open a page.", _bare("page"), read)


def _bare(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}


def _elsewhere(**_: Any) -> str:
    return "error: this tool works only in its server"


def served(name: str) -> Tool:
    """Return a tool of an MCP server, to be shown; it is called through `etude.rl.mcp_client`."""
    of = SCHEMAS[name]
    return Tool(name, of["description"], of["parameters"], _elsewhere)


TOOLS: dict[str, Callable[[Mapping[str, str]], Tool]] = {
    "calculator": lambda _: CALCULATOR,
    "lookup": lookup,
    "search": search,
    "open": open_page,
    **{name: (lambda _, name=name: served(name)) for name in SCHEMAS},
    **{name: (lambda _, of=of: real(of)) for name, of in REAL.items()},
}


def bind(names: tuple[str, ...], pages: Mapping[str, str] | None = None) -> list[Tool]:
    """Return the tools of these names, over `pages` where they read any.

    Raises:
        EtudeError: an unknown name.
    """
    for name in names:
        if name not in TOOLS:
            raise EtudeError(f"tool {name}", "no such tool", ", ".join(TOOLS), closest(name, TOOLS))
    return [TOOLS[name](pages or {}) for name in names]
