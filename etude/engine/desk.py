"""Rows of memory, one per request that is worked on, which kernels read without copying.

Fused kernels read keys and values that stand together, not scattered over pages. So what others
have computed of a prompt is copied from its pages into a row once, new tokens are stored in the
row, and pages get them when they are made known. While the same requests write, a step moves no
memory but its own. The price is room: every row is as long as the longest request.
"""

from collections.abc import Sequence
from itertools import count

from etude.engine.entry import Entry
from etude.engine.store import Store
from etude.typing import Tensor

LEAST = 64  # tokens of a row at first


class Desk:
    """Rows of all layers; grows as needed, and is dropped when nobody sits there.

    Attributes:
        entries: those that write, in the order of their rows, which are the first.
        readers: those whose ids are not yet all computed, in the order in which they take turns.
        careful: mixers get copies of the states, for with one token they move them in place, and a
            pass that fails midway has then moved some.
    """

    def __init__(self, store: Store):
        self.store = store
        self.entries: list[Entry] = []
        self.readers: list[Entry] = []
        self.space, self.capacity, self.careful = 0, 0, False
        self.paged: dict[tuple[int, str], Tensor] = {}
        self.states: dict[tuple[int, str], Tensor] = {}

    @property
    def seated(self) -> list[Entry]:
        """All that have a row."""
        return [*self.entries, *self.readers]

    def writes(self, entry: Entry) -> bool:
        """Whether a request that has a row writes."""
        return entry.row < len(self.entries)

    def seat(self, entry: Entry, tokens: int) -> None:
        """Give a request that reads a row with room for so many tokens."""
        taken = {one.row for one in self.seated}
        entry.row = next(row for row in count() if row not in taken)
        self.readers.append(entry)
        self.reserve(entry.row + 1, tokens)

    def load(self, entry: Entry, snapshot: int) -> None:
        """Fill a row with what the pages have of its request, and a state; -1 is the first one."""
        end, places = entry.computed, self.store.places(entry, 0, entry.computed)
        for key, value in self.paged.items():
            at = places[self.store.table[key]]
            value[entry.row, end - len(at) : end] = self.store.paged[key][at]
        for key, value in self.states.items():
            value[entry.row] = self.store.states[key][snapshot] if snapshot >= 0 else 0

    def save(self, entry: Entry, start: int, end: int) -> None:
        """Write a row's tokens from `start` to `end` into its pages."""
        places = self.store.places(entry, start, end)
        for key, value in self.paged.items():
            at = places[self.store.table[key]]
            self.store.paged[key][at] = value[entry.row, end - len(at) : end]

    def snap(self, entry: Entry, snapshot: int) -> None:
        """Keep the state of a row as a snapshot."""
        for key, value in self.states.items():
            self.store.states[key][snapshot] = value[entry.row]

    def copy(self, source: Entry, target: Entry) -> None:
        """Fill a row with what another has computed."""
        for value in self.paged.values():
            value[target.row, : source.computed] = value[source.row, : source.computed]
        for value in self.states.values():
            value[target.row] = value[source.row]

    def write(self, entries: Sequence[Entry]) -> None:
        """Let requests that have read all that they know write."""
        self.readers = [entry for entry in self.readers if entry not in entries]
        self.entries = [*self.entries, *entries]
        self._arrange()

    def leave(self, gone: Sequence[Entry], *, spoilt: bool) -> None:
        """Let requests go; what is `spoilt` goes too, for a masked key still counts as 0 * NaN."""
        rows = [entry.row for entry in gone if entry.row >= 0]
        if not rows:
            return
        if spoilt:
            for value in (*self.paged.values(), *self.states.values()):
                value[rows] = 0
        for entry in gone:
            entry.row = -1
        self.entries = [entry for entry in self.entries if entry.row >= 0]
        self.readers = [entry for entry in self.readers if entry.row >= 0]
        self._arrange()
        if not self.seated:  # the next ones may be few and short
            self.paged, self.states = {}, {}
            self.space, self.capacity, self.careful = 0, 0, False

    def _arrange(self) -> None:
        """Bring those that write to the first rows; no more rows move than must."""
        end = len(self.entries)
        late = [entry for entry in self.entries if entry.row >= end]
        if late:
            taken = {entry.row for entry in self.entries}
            gaps = [row for row in range(end) if row not in taken]
            moved = [*late, *(entry for entry in self.readers if entry.row < end)]
            sources = [entry.row for entry in moved]
            targets = [*gaps, *sources][: len(moved)]  # who was in the way goes where they were
            longest = max(entry.computed for entry in moved)
            for value in self.paged.values():
                value[targets, :longest] = value[sources, :longest]
            for value in self.states.values():
                value[targets] = value[sources]
            for entry, row in zip(moved, targets, strict=True):
                entry.row = row
        self.entries.sort(key=lambda entry: entry.row)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for so many rows of so many tokens."""
        if rows <= self.space and tokens <= self.capacity:
            return
        if rows > self.space:
            self.space = max(rows, min(2 * self.space, 2 * rows))
        if tokens > self.capacity:
            self.capacity = max(tokens + LEAST // 2, 2 * self.capacity, LEAST)
        for key, pool in self.store.paged.items():
            made = pool.new_zeros(self.space, self.capacity, *pool.shape[1:])
            self.paged[key] = _grown(self.paged.get(key), made)
        for key, pool in self.store.states.items():
            made = pool.new_zeros(self.space, *pool.shape[1:])
            self.states[key] = _grown(self.states.get(key), made)


def _grown(old: Tensor | None, made: Tensor) -> Tensor:
    if old is not None:
        made[tuple(map(slice, old.shape))] = old
    return made
