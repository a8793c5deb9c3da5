"""A small world behind tools: things on shelves, with a state, a seed, and trouble on purpose.

Kimi K2's tool simulator keeps a state and answers with controlled randomness: success, partial
failure, or an edge case (arXiv:2507.20534, section 3.1.1).
"""

import random
from collections.abc import Mapping
from typing import Any

from etude.data.tasks_tool import WORDS
from etude.data.tools import Tool

SHELVES = ("north", "south", "east", "west")
ROOM = 2  # things that fit on a shelf
BUSY = "busy, try again"


class Store:
    """Shelves with things on them.

    Args:
        things: shelf of each thing at the start.
        seed: of the trouble.
        trouble: chance that a change is answered `busy` and does nothing.

    Attributes:
        things: shelf of each thing now.
    """

    def __init__(self, things: Mapping[str, str], *, seed: int, trouble: float):
        self.things, self.trouble = dict(things), trouble
        self._rng = random.Random(seed)

    def find(self, item: str) -> str:
        """Return the shelf of a thing."""
        return self.things.get(item, f"error: no {item}")

    def put(self, item: str, shelf: str) -> str:
        """Put a thing on a shelf, from wherever it was; a full shelf takes none."""
        if shelf not in SHELVES:
            return f"error: no shelf {shelf}"
        if self.things.get(item) != shelf and self.free(shelf) < 1:
            return f"error: {shelf} is full"
        if self._rng.random() < self.trouble:
            return BUSY
        self.things[item] = shelf
        return "ok"

    def free(self, shelf: str) -> int:
        """Return how many things a shelf still takes."""
        return ROOM - list(self.things.values()).count(shelf)

    def tools(self) -> list[Tool]:
        """What a model may call."""
        return [
            Tool("find", "Find a thing.", _schema("item"), self.find),
            Tool("put", "Put a thing on a shelf.", _schema("item", "shelf"), self.put),
        ]


def stocked(rng: random.Random, *, trouble: float) -> Store:
    """Return a store with three things, of which no shelf holds more than fit."""
    things = dict(zip(rng.sample(WORDS, 3), rng.sample(SHELVES * ROOM, 3), strict=True))
    return Store(things, seed=rng.randrange(2**32), trouble=trouble)


def _schema(*names: str) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in names}
    return {"type": "object", "properties": properties, "required": list(names)}
