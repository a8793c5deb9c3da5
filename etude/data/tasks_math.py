"""Mathematics whose answers can be written in many ways: 1/2, 0.5 and 2/4 are one answer.

Equality of text is not enough here, so `etude.rl.env_math` judges by value. Levels: 0 fractions,
1 linear equations, 2 percentages, 3 algebra (expand, or find both roots). Forms and sizes are ours;
the reports train on collected problems with a rule checker (MiniMax-M1, arXiv:2506.13585, section
4.1).
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction

from etude.data.tasks_base import Item, Reply
from etude.errors import EtudeError

Made = tuple[str, str, str]  # question, steps, answer
ROOTS = [n for n in range(-12, 13) if n]


class Math:
    """`1/2 + 1/3 = ?` is `5/6`, and so is 10/12."""

    name = "math"
    levels = 4

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a question of one of the level's kinds."""
        kind = rng.choice(KINDS[level])
        question, steps, answer = kind(rng)
        return Item("math", level, question, answer, steps, data={"form": FORM[kind]})

    def score(self, item: Item, reply: Reply | str) -> float:
        """Refuse: values are compared by `etude.rl.env_math`, in a process of its own.

        Raises:
            EtudeError: always.
        """
        do = "play it as an environment (etude.rl.tasks.group)"
        raise EtudeError("task math", "its answers are compared by value", "math-verify", do)


# The question itself has the value that is asked for, so a right answer is also a finished one.
_ONE = r"-?(\d+(\.\d+)?|\d+/\d+|\\d?frac\{-?\d+\}\{\d+\})"
FORMS: dict[str, re.Pattern[str]] = {
    "number": re.compile(rf"(x=)?{_ONE}"),
    "sum": re.compile(r"[-+]?[\dx^*]+([-+][\dx^*]+)*"),
    "numbers": re.compile(rf"\\?\{{?(x=)?{_ONE}((,|or|and)(x=)?{_ONE})*\\?\}}?"),
}


def finished(item: Item, text: str) -> bool:
    """Return whether an answer is a number, a plain sum of powers, or a list, as its item asks."""
    return FORMS[item.data["form"]].fullmatch(re.sub(r"\s|\\[,; ]", "", text)) is not None


def _fraction(value: Fraction) -> str:
    return str(value)  # 5/6, or 2


def _added(rng: random.Random) -> Made:
    a, b = (Fraction(rng.randint(1, 9), rng.randint(2, 9)) for _ in range(2))
    sign = rng.choice("+-") if a > b else "+"
    bottom = a.denominator * b.denominator
    left, right = (int(value * bottom) for value in (a, b))
    value = a + b if sign == "+" else a - b
    top = left + right if sign == "+" else left - right
    steps = f"{left}/{bottom} {sign} {right}/{bottom} = {top}/{bottom}"
    return f"{_fraction(a)} {sign} {_fraction(b)} = ?", steps, _fraction(value)


def _multiplied(rng: random.Random) -> Made:
    a, b = (Fraction(rng.randint(1, 9), rng.randint(2, 9)) for _ in range(2))
    top, bottom = a.numerator * b.numerator, a.denominator * b.denominator
    steps = f"{a.numerator}*{b.numerator} / {a.denominator}*{b.denominator} = {top}/{bottom}"
    return f"{_fraction(a)} * {_fraction(b)} = ?", steps, _fraction(a * b)


def _linear(rng: random.Random) -> Made:
    a, b, c = rng.randint(2, 9), rng.randint(1, 19), rng.randint(1, 39)
    sign = rng.choice("+-")
    right = c - b if sign == "+" else c + b
    value = Fraction(right, a)
    steps = f"{a}x = {c} {'-' if sign == '+' else '+'} {b} = {right}, x = {right}/{a}"
    return f"solve {a}x {sign} {b} = {c}", steps, f"x = {_fraction(value)}"


def _both_sides(rng: random.Random) -> Made:
    a, b = rng.sample(range(2, 10), 2)
    c, d = rng.randint(1, 19), rng.randint(1, 19)
    steps = f"{a}x - {b}x = {d} - {c}, {a - b}x = {d - c}, x = {d - c}/{a - b}"
    value = Fraction(d - c, a - b)
    return f"solve {a}x + {c} = {b}x + {d}", steps, f"x = {_fraction(value)}"


def _percent(rng: random.Random) -> Made:
    part, whole = 5 * rng.randint(1, 19), 10 * rng.randint(1, 30)
    product = part * whole
    steps = f"{part}*{whole} = {product}, {product}/100"
    return f"what is {part}% of {whole}?", steps, _tenths(Fraction(product, 100))


def _raised(rng: random.Random) -> Made:
    part, whole = 5 * rng.randint(1, 12), 10 * rng.randint(1, 30)
    word, sign = rng.choice((("more", 1), ("less", -1)))
    change = Fraction(part * whole, 100)
    steps = f"{part}*{whole}/100 = {_tenths(change)}, {whole} {'+-'[sign < 0]} {_tenths(change)}"
    return f"what is {part}% {word} than {whole}?", steps, _tenths(whole + sign * change)


def _tenths(value: Fraction) -> str:
    return f"{float(value):g}"  # at most one digit behind the point, exact


def _expanded(rng: random.Random) -> Made:
    a, b = rng.choice(ROOTS), rng.choice(ROOTS)
    steps = f"{a} + {b} = {a + b}, {a} * {b} = {a * b}"
    question = f"expand (x{_term(a)})(x{_term(b)})"
    return question, steps, f"x^2{_term(a + b, 'x')}{_term(a * b)}"


def _roots(rng: random.Random) -> Made:
    a, b = sorted(rng.sample(ROOTS, 2))
    steps = f"{a} + {b} = {a + b}, {a} * {b} = {a * b}"
    return f"solve x^2{_term(-a - b, 'x')}{_term(a * b)} = 0", steps, f"{a}, {b}"


def _term(number: int, name: str = "") -> str:
    """Return ` + 3x`, ` - x`, or nothing for 0."""
    size = "" if name and abs(number) == 1 else str(abs(number))
    return f" {'+-'[number < 0]} {size}{name}" if number else ""


KINDS: tuple[tuple[Callable[[random.Random], Made], ...], ...] = (
    (_added, _multiplied),
    (_linear, _both_sides),
    (_percent, _raised),
    (_expanded, _roots),
)
FORM = dict.fromkeys((kind for level in KINDS for kind in level), "number") | {
    _expanded: "sum",
    _roots: "numbers",
}
