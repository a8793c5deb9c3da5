"""Questions about invented people, whose answers stand in no prompt: what a model has kept."""

import random

from etude.data.facts import GROUPS, VALUES, people
from etude.data.tasks_base import Exact, Item

ASKED = {"town": "home of", "work": "work of", "pet": "pet of", "food": "food of"}


class Fact(Exact):
    """`pet of Eva Lind?` is `owl`; level 0 asks of people told of in many wordings, 1 in one.

    The split is by person: fine-tuning on some teaches how to answer, and those held out show what
    pre-training has left. Guessing solves one in eight.
    """

    name = "fact"
    levels = len(GROUPS)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a question about one fact of one person."""
        person = rng.choice(people(GROUPS[level]))
        key = rng.choice(list(VALUES))
        question = f"{ASKED[key]} {person.name}?"
        return Item("fact", level, question, person.facts[key], key=person.name)
