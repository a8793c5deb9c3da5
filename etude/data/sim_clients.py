"""Clients of the order desk: seeded programs that say what they want, piece by piece."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing a client wants.

    Attributes:
        said: how it begins.
        owed: what it says when it is asked back; empty where it has said all.
        heard: what the answer must hold; empty where the desk's state tells enough.
    """

    said: str
    owed: str = ""
    heard: str = ""


class Client:
    """Says one wish after the other, and notes which answers do not tell what was asked.

    Args:
        asks: in order.

    Attributes:
        missed: wishes whose answer lacked what must be heard.
    """

    def __init__(self, asks: Sequence[Ask]):
        self.asks, self.missed = tuple(asks), 0
        self._at, self._owed = 0, asks[0].owed

    def opening(self) -> str:
        """Tell the first wish."""
        return self.asks[0].said

    def reply(self, said: str) -> str | None:
        """Answer a question where something is owed; else tell the next wish, or end (None)."""
        if self._owed and said.endswith("?"):
            owed, self._owed = self._owed, ""
            return owed
        if self.asks[self._at].heard not in said.split() and self.asks[self._at].heard:
            self.missed += 1
        self._at += 1
        if self._at == len(self.asks):
            return None
        self._owed = self.asks[self._at].owed
        return self.asks[self._at].said
