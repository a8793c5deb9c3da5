"""Text of an answer as it comes: whole characters, nothing that may still be a stop string."""

from collections.abc import Sequence
from typing import Protocol


class Pieces(Protocol):
    """A decoder that takes one id at a time, as `text.tokenizer.Stream` is one."""

    def feed(self, *ids: int) -> str:
        """The text that these ids complete."""
        ...

    def finish(self) -> str:
        """What is left of a character that never came whole."""
        ...


class Writer:
    """Turns ids into text and watches for stop strings.

    Of several stop strings, the one that is complete first wins; of those complete at the same
    character, the one that began first. So the result does not depend on how the text is cut.

    Args:
        pieces: decoder of ids.
        stops: strings that end the text.
        shown: whether the string that ended it is part of it.

    Attributes:
        hit: a stop string has come.
    """

    def __init__(self, pieces: Pieces, stops: Sequence[str] = (), *, shown: bool = False):
        self._pieces, self._stops, self._shown = pieces, tuple(stops), shown
        self._held = ""
        self.hit = False

    def feed(self, token: int, *, heed: bool = True) -> str:
        """Return the text that has become certain; `heed` false does not look for stop strings."""
        text = self._pieces.feed(token)
        if not heed or not self._stops:
            text, self._held = self._held + text, ""
            return text
        return self._watch(text)

    def flush(self) -> str:
        """Return what was held back: no stop string goes on from here."""
        held, self._held = self._held, ""
        return held

    def finish(self) -> str:
        """Return what was held back, and the rest of a character that never came whole."""
        if self.hit:
            return ""
        text = self._pieces.finish()
        text = self._watch(text) if self._stops and text else text
        held, self._held = self._held, ""
        return text if self.hit else text + held

    def _watch(self, text: str) -> str:
        self._held += text
        ends = []
        for stop in self._stops:
            start = self._held.find(stop)
            if start >= 0:
                ends.append((start + len(stop), start))
        if ends:
            end, start = min(ends)
            text = self._held[: end if self._shown else start]
            self._held, self.hit = "", True
            return text
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _overlap(self, stop: str) -> int:
        """Letters at the end of the held text with which the string may have begun."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:size]):
                return size
        return 0
