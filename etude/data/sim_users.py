"""Simulated users: seeded programs that want something, in their own words and in their own time.

A user sees only what the model says to it, never the tools. A language model or a person fits
behind the same interface (Kimi K2 lets language models with personas play, arXiv:2507.20534,
section 3.1.1).
"""

import random
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user wants done.

    Attributes:
        kind: `put` a thing on a shelf, or `find` one.
        item: the thing.
        shelf: where it shall be; empty for `find`.
    """

    kind: str
    item: str
    shelf: str = ""


class User(Protocol):
    """One side of a conversation.

    Attributes:
        wishes: all it will ask for, in order; what a judge knows and a model does not.
    """

    wishes: tuple[Wish, ...]

    def opening(self) -> str:
        """Return the first thing it says."""
        ...

    def reply(self, said: str) -> str | None:
        """Answer what the model said; None ends the conversation."""
        ...


class Scripted:
    """A user made of a persona and wishes.

    Args:
        persona: `clear` says all at once, `terse` leaves the shelf out until asked.
        wishes: one after the other; the next is told once the model has answered.
        rng: decides the words.
    """

    def __init__(self, persona: str, wishes: tuple[Wish, ...], rng: random.Random):
        self.persona, self.wishes, self._rng = persona, wishes, rng
        self._at, self._owed = 0, ""

    def opening(self) -> str:
        """Tell the first wish."""
        return self._tell()

    def reply(self, said: str) -> str | None:
        """Say the shelf when asked for it; else the next wish, or nothing more."""
        if self._owed and said.endswith("?"):
            shelf, self._owed = self._owed, ""
            return self._rng.choice(("{}", "on {}", "{} please")).format(shelf)
        self._at += 1
        return self._tell() if self._at < len(self.wishes) else None

    def _tell(self) -> str:
        wish, self._owed = self.wishes[self._at], ""
        if wish.kind == "find":
            return self._rng.choice(FIND).format(item=wish.item)
        if self.persona == "terse":
            self._owed = wish.shelf
            return self._rng.choice(PUT).format(item=wish.item)
        return self._rng.choice(PUT_ON).format(item=wish.item, shelf=wish.shelf)


FIND = ("where is the {item}?", "find the {item}", "which shelf has the {item}?")
PUT = ("put the {item} away", "move the {item}", "a new place for the {item}")
PUT_ON = ("put the {item} on {shelf}", "move the {item} to {shelf}", "{item} to {shelf} please")
