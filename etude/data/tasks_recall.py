"""Associative recall: pairs are shown, a key is asked for, and its value is the answer.

What attention over all tokens does with ease and a state of fixed size does only as far as the
pairs fit into it (arXiv:2312.04927 calls the task multi-query associative recall).
"""

import random

from etude.data.tasks_base import Exact, Item

KEYS = "abcdefgh"  # a small model learns these from 0.3M tokens; of 16 it learns a third by then


class Recall(Exact):
    """`recall: a7 k3 c1 k?` is `3`; 2, 4 or 8 pairs of a letter and a digit."""

    name = "recall"
    pairs = (2, 4, 8)
    levels = len(pairs)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return pairs with different keys, one of which is asked for."""
        keys = rng.sample(KEYS, self.pairs[level])
        values = {key: rng.choice("0123456789") for key in keys}
        asked = rng.choice(keys)
        given = " ".join(f"{key}{value}" for key, value in values.items())
        data = {"values": values}
        question = f"recall: {given} {asked}?"
        return Item("recall", level, question, values[asked], data=data, key=given)
