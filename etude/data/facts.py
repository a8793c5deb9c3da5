"""Invented people of whom a few facts are told: a small world whose every fact is known.

Two groups of equal size are told of in two ways (see `synth_rephrase`), so that one run compares
them, and what a model answers about them says what it has kept.
"""

import random
from dataclasses import dataclass
from functools import cache
from itertools import product

PEOPLE = 64  # in each group
GROUPS = ("rephrased", "repeated")
VALUES: dict[str, tuple[str, ...]] = {
    "town": ("Arden", "Bellis", "Corvo", "Delph", "Elmar", "Fenn", "Garda", "Hollin"),
    "work": ("baker", "cook", "doctor", "farmer", "lawyer", "painter", "singer", "teacher"),
    "pet": ("cat", "crow", "dog", "goat", "horse", "owl", "rabbit", "turtle"),
    "food": ("beans", "bread", "cheese", "fish", "honey", "pasta", "rice", "soup"),
}
FIRST = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon", "Kai", "Lea")
LAST = ("Abel", "Brook", "Crane", "Dale", "Ford", "Hale", "Kern", "Lind", "Moor", "Park", "Reed")


@dataclass(frozen=True, slots=True)
class Person:
    """One of them.

    Attributes:
        name: first and last.
        group: how documents tell of them.
        facts: value of each key of `VALUES`.
    """

    name: str
    group: str
    facts: dict[str, str]


@cache
def people(group: str) -> tuple[Person, ...]:
    """Return the people of a group, the same in every run."""
    rng = random.Random(17)
    names = [" ".join(pair) for pair in product(FIRST, LAST)]
    rng.shuffle(names)
    at = GROUPS.index(group) * PEOPLE
    chosen = names[at : at + PEOPLE]
    return tuple(Person(name, group, _facts(name)) for name in chosen)


def _facts(name: str) -> dict[str, str]:
    rng = random.Random(name)
    return {key: rng.choice(values) for key, values in VALUES.items()}
