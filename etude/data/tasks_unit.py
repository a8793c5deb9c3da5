"""Code with unit tests: written, repaired, or tested, and judged by running it in a sandbox.

Levels 0 to 2 are a function from a sentence, 3 is a repair (sentence and faulty code, corrected
code), 4 asks for tests that pass on the right code and fail on faulty ones. These are localisation,
repair and test writing in miniature (MiniMax-M1, arXiv:2506.13585, section 4.1); sizes are ours.

The references here are read by `tasks_python`, which executes nothing; what a model writes is run
by `etude.rl.env_code`.
"""

import ast
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etude.data.tasks_base import Item, Reply
from etude.data.tasks_python import PythonError, call
from etude.errors import EtudeError

TESTS = 6
FAULTS = 3  # faulty versions that written tests must catch
SHOWN = 2  # assertions of a written test
Arguments = tuple[Any, ...]
# words, parameters, body, draws arguments
Task = tuple[str, str, str, Callable[[], Arguments]]


class Unit:
    """`write f(n): the sum of 1 to n` and what a test asks of it; see the module for levels."""

    name = "unit"
    levels = 5

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a function to write, to repair, or to test."""
        task = rng.choice(TASKS[level if level < len(TASKS) else rng.randrange(len(TASKS))])
        words, parameters, body, draws = task(rng)
        right = ast.unparse(ast.parse(f"def f({parameters}):\n{body}"))
        tests = _tests(right, draws)
        about = f"f({parameters}): {words}"
        if level < len(TASKS):
            data = {"kind": "write", "tests": tests}
            return Item("unit", level, f"write {about}", right, data=data, key=about)
        faults = _faults(rng, right, tests)
        if level == len(TASKS):
            data = {"kind": "repair", "tests": tests}
            question = f"repair {about}\n{faults[0]}"
            return Item("unit", level, question, right, data=data, key=about)
        seen = _telling(right, faults, tests)
        answer = "\n".join(f"assert f({_written(given)}) == {value!r}" for given, value in seen)
        data = {"kind": "test", "right": right, "faults": faults[:FAULTS]}
        return Item("unit", level, f"test {about}", answer, data=data, key=about)

    def score(self, item: Item, reply: Reply | str) -> float:
        """Refuse: code is judged by running it, which `etude.rl.env_code` does in a sandbox.

        Raises:
            EtudeError: always.
        """
        do = "play it as an environment (etude.rl.tasks.group)"
        raise EtudeError("task unit", "its answers can only be run", "a sandbox", do)


def _tests(source: str, draws: Callable[[], Arguments]) -> tuple[tuple[Arguments, Any], ...]:
    found: dict[str, tuple[Arguments, Any]] = {}
    for _ in range(TESTS * 4):
        given = draws()
        found[repr(given)] = (given, _value(source, given))
        if len(found) == TESTS:
            break
    return tuple(found.values())


def _value(source: str, given: Arguments) -> Any:
    return call(source, "f", copy.deepcopy(list(given)))


def _written(given: Arguments) -> str:
    return ", ".join(map(repr, given))


def _faults(rng: random.Random, right: str, tests: Sequence[tuple[Arguments, Any]]) -> list[str]:
    """Return faulty versions in random order: one change away, and wrong without raising."""
    found = []
    for source in dict.fromkeys(mutants(right)):
        try:
            if sum(_differs(source, given, value) for given, value in tests):  # every test runs
                found.append(source)
        except PythonError:
            continue
    rng.shuffle(found)
    return found


def _differs(source: str, given: Arguments, value: Any) -> bool:
    return _value(source, given) != value


def _telling(
    right: str, faults: Sequence[str], tests: Sequence[tuple[Arguments, Any]]
) -> list[tuple[Arguments, Any]]:
    """Return the fewest of the tests, taken greedily, that catch every faulty version."""
    left, chosen = list(faults[:FAULTS]), []
    while left or len(chosen) < SHOWN:
        rest = [test for test in tests if test not in chosen]
        best = max(rest, key=lambda test: sum(_differs(fault, *test) for fault in left))
        chosen.append(best)
        left = [fault for fault in left if not _differs(fault, *best)]
    return chosen


SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Mod: ast.FloorDiv,
    ast.FloorDiv: ast.Mod,
    ast.Gt: ast.Lt,
    ast.Lt: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.In: ast.NotIn,
}


def mutants(source: str) -> Iterator[str]:
    """Yield every version of a program with one operator swapped or one number raised by one."""
    size = sum(1 for _ in ast.walk(ast.parse(source)))
    for place in range(size):
        tree = ast.parse(source)
        node = list(ast.walk(tree))[place]
        match node:
            case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
                node.op = SWAPS[type(op)]()
            case ast.Compare(ops=[op]) if type(op) in SWAPS:
                node.ops = [SWAPS[type(op)]()]
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                node.value = value + 1
            case _:
                continue
        yield ast.unparse(tree)


def _number(rng: random.Random) -> Callable[[], Arguments]:
    return lambda: (rng.randint(-20, 20),)


def _small(rng: random.Random) -> Callable[[], Arguments]:
    return lambda: (rng.randint(1, 12),)


def _two(rng: random.Random) -> Callable[[], Arguments]:
    return lambda: (rng.randint(-20, 20), rng.randint(-20, 20))


def _word(rng: random.Random) -> Callable[[], Arguments]:
    return lambda: ("".join(rng.choices("abcde", k=rng.randint(3, 8))),)


def _list(rng: random.Random) -> Callable[[], Arguments]:
    return lambda: (rng.choices(range(50), k=rng.randint(2, 8)),)


def _linear(rng: random.Random) -> Task:
    a, b = rng.randint(2, 19), rng.randint(1, 49)
    sign, word = rng.choice((("+", "plus"), ("-", "minus")))
    return f"x times {a} {word} {b}", "x", f"    return x * {a} {sign} {b}", _number(rng)


def _join(rng: random.Random) -> Task:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return f"{a} times x plus {b} times y", "x, y", f"    return {a} * x + {b} * y", _two(rng)


def _wrap(rng: random.Random) -> Task:
    n, letter = rng.randint(2, 5), rng.choice("abcde")
    return f"s {n} times, then {letter}", "s", f"    return s * {n} + '{letter}'", _word(rng)


def _divided(rng: random.Random) -> Task:
    n, b = rng.randint(2, 19), rng.randint(1, 19)
    return (
        f"x divided by {n} without rest, plus {b}",
        "x",
        f"    return x // {n} + {b}",
        _number(rng),
    )


def _above(rng: random.Random) -> Task:
    at, a, b = rng.randint(-9, 9), rng.randint(1, 9), rng.randint(1, 9)
    body = f"    if x > {at}:\n        return x + {a}\n    return x - {b}"
    return f"x plus {a} if x is above {at}, else x minus {b}", "x", body, _number(rng)


def _further(rng: random.Random) -> Task:
    n, b = rng.randint(2, 9), rng.randint(1, 29)
    body = f"    if x > y:\n        return {n} * x + {b}\n    return {n} * y + {b}"
    return f"{n} times the larger of x and y, plus {b}", "x, y", body, _two(rng)


def _ends(rng: random.Random) -> Task:
    letter, a, b = rng.choice("abcde"), rng.randint(1, 9), rng.randint(11, 19)
    body = f"    if '{letter}' in s:\n        return {b}\n    return {a}"
    return f"{b} if {letter} is in s, else {a}", "s", body, _word(rng)


def _divides(rng: random.Random) -> Task:
    n, a, b = rng.randint(2, 5), rng.randint(1, 9), rng.randint(1, 9)
    body = f"    if x % {n} == 0:\n        return x + {a}\n    return x * {b + 1}"
    return f"x plus {a} if {n} divides x, else x times {b + 1}", "x", body, _number(rng)


def _loop(start: str, head: str, step: str) -> str:
    return f"    t = {start}\n    for {head}:\n        {step}\n    return t"


def _sum(rng: random.Random) -> Task:
    a, b = rng.randint(2, 9), rng.randint(1, 29)
    body = _loop(str(b), "i in range(1, n + 1)", f"t += i * {a}")
    return f"{b} plus the sum of 1 to n, each times {a}", "n", body, _small(rng)


def _total(rng: random.Random) -> Task:
    at, b = rng.randint(5, 44), rng.randint(1, 9)
    body = _loop(str(b), "x in xs", f"if x > {at}:\n            t += x")
    return f"{b} plus the sum of xs above {at}", "xs", body, _list(rng)


def _count(rng: random.Random) -> Task:
    letter, n = rng.choice("abcde"), rng.randint(1, 19)
    body = _loop("0", "c in s", f"if c == '{letter}':\n            t += {n}")
    return f"how often {letter} is in s, times {n}", "s", body, _word(rng)


def _each(rng: random.Random) -> Task:
    a, b = rng.randint(2, 19), rng.randint(1, 49)
    body = _loop("[]", "x in xs", f"t.append(x * {a} + {b})")
    return f"each of xs times {a} plus {b}", "xs", body, _list(rng)


TASKS: tuple[tuple[Callable[[random.Random], Task], ...], ...] = (
    (_linear, _join, _wrap, _divided),
    (_above, _further, _ends, _divides),
    (_sum, _total, _count, _each),
)
