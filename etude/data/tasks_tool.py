"""Questions that need a tool: a sum for the calculator, pages to follow until one names a word."""

import random
from itertools import pairwise

from etude.data.tasks_base import Call, Exact, Item
from etude.data.tools import calculate

FORMS = (
    "What is {}?",
    "Compute {}.",
    "{} = ?",
    "How much is {}?",
    "Please work out {}.",
    "Use the calculator: {}",
)
WORDS = [
    *("lamp", "tree", "boat", "cake", "door", "fish", "gold", "hand", "iron", "jade"),
    *("king", "leaf", "moon", "nest", "oven", "pear", "rain", "salt", "tent", "wolf"),
    *("bell", "coin", "drum", "flag", "goat", "hill", "lion", "milk", "ring", "star"),
]


class Calculate(Exact):
    """Two numbers of 2, 3 or 4 digits: call the calculator, then copy what it says."""

    name = "calc"
    levels = 3

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a sum, difference or product in one of six wordings."""
        low, high = 10 ** (level + 1), 10 ** (level + 2) - 1
        a, b = rng.randint(low, high), rng.randint(low, high)
        expression = f"{a}{rng.choice('+-*')}{b}"
        result = calculate(expression)
        call = Call("calculator", {"expression": expression}, result)
        question = rng.choice(FORMS).format(expression)
        return Item("calc", level, question, result, "", ("calculator",), (call,), key=expression)


class Lookup(Exact):
    """`find the word of page 482`: each page names the next, the last a word; 1 to 4 turns.

    The number of turns is not told, so a policy that is cut off after k turns can only answer the
    levels below k.
    """

    name = "lookup"
    levels = 4
    others = 4  # pages that lead elsewhere

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a trail of `level + 1` pages among others."""
        numbers = [str(n) for n in rng.sample(range(100, 1000), level + 1 + self.others)]
        trail, rest = numbers[: level + 1], numbers[level + 1 :]
        word = rng.choice(WORDS)
        pages = {page: f"see page {after}" for page, after in pairwise(trail)}
        pages |= {page: f"the word is {rng.choice(WORDS)}" for page in rest}
        pages[trail[-1]] = f"the word is {word}"
        calls = tuple(Call("lookup", {"page": page}, pages[page]) for page in trail)
        question = f"find the word of page {trail[0]}"
        return Item("lookup", level, question, word, "", ("lookup",), calls, {"pages": pages})
