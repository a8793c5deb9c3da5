"""Associative recall as documents: pairs, and then all of them again in other orders.

Every value that is repeated can be known from the first time: three in eight tokens of a document
teach recall, where a question teaches it by one.
"""

import random
from collections.abc import Iterator

from etude.data.documents import Document
from etude.data.tasks import Item, draw
from etude.data.tasks_recall import Recall

AGAIN = 3  # times that all pairs are repeated


def recall(count: int, seed: int, *, held: bool = False) -> Iterator[Document]:
    """Yield documents of every level, about as many tokens of each.

    Args:
        count: how many.
        seed: decides all of them.
        held: draw from the held-out questions instead, for evaluation.
    """
    rng = random.Random(seed)
    weights = [1 / pairs for pairs in Recall.pairs]
    for number in range(count):
        [level] = rng.choices(range(Recall.levels), weights)
        item = draw("recall", rng, level, held=held)
        yield Document(written(item, rng), "recall", "recall", f"recall.{number}", "generated")


def written(item: Item, rng: random.Random) -> str:
    """Return the pairs of a question, and all of them again in random orders."""
    pairs = [f"{key}{value}" for key, value in item.data["values"].items()]
    orders = [pairs, *(rng.sample(pairs, len(pairs)) for _ in range(AGAIN))]
    return f"recall: {' | '.join(' '.join(order) for order in orders)}\n"
