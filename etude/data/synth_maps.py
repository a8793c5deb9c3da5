"""Lists of letters and what a rule sends them to: in-context learning at its smallest.

Each document follows one of eight rules. Which one stands nowhere; the lines before tell. What a
rule sends a letter to is a fact to be stored in weights, which rule holds is to be read from the
context: as with tasks that a large model has met in its text (arXiv:2005.14165, section 1).
"""

import random
from collections.abc import Callable, Iterator

from etude.data.documents import Document

SYMBOLS = "abcdefghijklmnopqrstuvwxyz"
LINES = 40  # of a document


def _turned(by: int) -> Callable[[int], str]:
    return lambda place: SYMBOLS[(place + by) % len(SYMBOLS)]


# place of the letter -> what stands behind it. Small letters, capitals, digits and marks tell the
# groups apart at a glance; inside a group the pairs have to be compared.
RULES: dict[str, Callable[[int], str]] = {
    "same": _turned(0),
    "next": _turned(1),
    "before": _turned(-1),
    "mirror": lambda place: SYMBOLS[-1 - place],
    "capital": lambda place: SYMBOLS[place].upper(),
    "next capital": lambda place: _turned(1)(place).upper(),
    "number": lambda place: str(place % 10),
    "vowel": lambda place: "+" if SYMBOLS[place] in "aeiou" else "-",
}


def answered(rule: str, letter: str) -> str:
    """Return what a rule sends a letter to, with the space before it."""
    return f" {RULES[rule](SYMBOLS.index(letter))}"


def maps(count: int, seed: int, *, held: bool = False) -> Iterator[Document]:
    """Yield lists of letters, one rule a document.

    Args:
        count: how many.
        seed: decides all of them.
        held: draw others, for evaluation; the rules are the same.
    """
    rng = random.Random(f"{seed} {held}")
    names = list(RULES)
    for number in range(count):
        rule = rng.choice(names)
        letters = rng.choices(SYMBOLS, k=LINES)
        text = "".join(f"{letter}{answered(rule, letter)}\n" for letter in letters)
        yield Document(text, "maps", "maps", f"maps.{number}", "generated")
