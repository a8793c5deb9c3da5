"""Chains that need several steps: running sums, and assignments to be traced in order.

One forward pass cannot do them well; written steps can. These are the families where thinking
should help.
"""

import random
from itertools import pairwise

from etude.data.tasks_base import Exact, Item

THINKING_FAMILIES = ("sum", "var")  # declared before any run: thinking must win here

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Sum(Exact):
    """`4+9-3?` with the steps `4+9=13 13-3=10`; 3, 4 or 6 digits as terms."""

    name = "sum"
    terms = (3, 4, 6)
    levels = len(terms)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a sum whose running total never falls below zero."""
        total = rng.randint(0, 9)
        question, steps = str(total), []
        for _ in range(self.terms[level] - 1):
            text, value = _step(rng, total)
            steps.append(f"{total}{text}={value}")
            question, total = question + text, value
        return Item("sum", level, f"{question}?", str(total), " ".join(steps))


class Var(Exact):
    """`k=c+8 t=k-6 c=2 t?` with the steps `c=2 k=2+8=10 t=10-6=4`; 2, 3 or 5 assignments."""

    name = "var"
    variables = (2, 3, 5)
    levels = len(variables)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a chain of assignments in random order that asks for the last variable."""
        names = rng.sample(LETTERS, self.variables[level])
        value = rng.randint(0, 9)
        given, steps = [f"{names[0]}={value}"], [f"{names[0]}={value}"]
        for before, name in pairwise(names):
            text, result = _step(rng, value)
            given.append(f"{name}={before}{text}")
            steps.append(f"{name}={value}{text}={result}")
            value = result
        key = " ".join(given)
        rng.shuffle(given)
        question = f"{' '.join(given)} {names[-1]}?"
        return Item("var", level, question, str(value), " ".join(steps), key=key)


def _step(rng: random.Random, total: int) -> tuple[str, int]:
    digit = rng.randint(0, 9)
    sign = rng.choice("+-") if digit <= total else "+"
    return f"{sign}{digit}", total + digit if sign == "+" else total - digit
