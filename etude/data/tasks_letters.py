"""Short exact answers without thinking, made for RL: letters reversed, digits sorted."""

import random

from etude.data.tasks_base import Exact, Item
from etude.data.tasks_chain import LETTERS


class Reverse(Exact):
    """`reverse: o w n s` is `s n w o`; 3-4, 5 or 6-7 letters. A whole word is held out or not."""

    name = "rev"
    sizes = ((3, 4), (5, 5), (6, 7))
    levels = len(sizes)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return random letters to reverse."""
        letters = rng.choices(LETTERS, k=rng.randint(*self.sizes[level]))
        return Item("rev", level, f"reverse: {' '.join(letters)}", " ".join(letters[::-1]))


class Sort(Exact):
    """`sort: 3 1 2 1` is `1 1 2 3`; 4, 6, 8 or 10 digits."""

    name = "sort"
    sizes = (4, 6, 8, 10)
    levels = len(sizes)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return random digits to sort."""
        digits = rng.choices("0123456789", k=self.sizes[level])
        return Item("sort", level, f"sort: {' '.join(digits)}", " ".join(sorted(digits)))
