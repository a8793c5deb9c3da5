"""The requests that write, side by side: rows that the attention kernel reads without copying.

Fused kernels read keys and values that stand together, not scattered over pages. So what a request
has read is copied from its pages into a row once, its new tokens are stored in the row, and pages
get them when the request leaves. While the same requests write, a step moves no memory but its own.
The price is room: a request that writes has its row beside the pages that are reserved for it.
"""

from collections.abc import Sequence

import torch

from etude.engine.entry import HOLE, Entry
from etude.engine.store import Store, View
from etude.nn.context import Context
from etude.ops.attention import cache_mask
from etude.typing import Tensor

LEAST = 64  # tokens of a row at first


class Desk(View):
    """Rows of all layers; grows as needed, and is dropped when nobody sits there.

    Args:
        store: pages and slots, where the rows come from and go to.

    Attributes:
        entries: who sits in which row.
        careful: mixers get copies of the states, for with one token they move them in place, and a
            pass that fails midway has then moved some.
    """

    def __init__(self, store: Store):
        super().__init__(store)
        self.entries: list[Entry] = []
        self.space, self.capacity, self.careful = 0, 0, False
        self.paged: dict[tuple[int, str], Tensor] = {}
        self.states: dict[tuple[int, str], Tensor] = {}
        self._even, self._longest = True, 0
        self._some: Tensor | None = None
        self._pos = self._row = torch.empty(0, dtype=torch.long, device=store.device)

    def begin(
        self,
        held: Sequence[int],
        width: int,
        counts: Sequence[int] | None = None,
        *,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Prepare a pass over `width` new tokens of every row.

        Args:
            held: tokens before them, per row.
            width: new tokens, padding on the right included.
            counts: new tokens per row where they differ.
            rows: which rows; None is all of them, which are then read in place.
        """
        self.rows, self.width = len(held), width
        longest = max(held)
        self.reserve(self.rows if rows is None else 0, longest + width)
        self._even = rows is None and longest == min(held)
        turns, device, mask = self.store.turns(longest + width), self.store.device, None
        steps = torch.arange(width, device=device)
        if self._even:
            index = (steps + longest).unsqueeze(0)
            turned = {
                key: (
                    cos.narrow(0, longest, width).unsqueeze(0),
                    sin.narrow(0, longest, width).unsqueeze(0),
                )
                for key, (cos, sin) in turns.items()
            }
            if width > 1:
                mask = cache_mask(index, longest + width).expand(self.rows, -1, -1, -1)
        else:
            index = torch.tensor(held, device=device).unsqueeze(1) + steps
            turned = {key: (cos[index], sin[index]) for key, (cos, sin) in turns.items()}
            mask = cache_mask(index, longest + width)
        self._pos, self._longest = index, longest
        self._some = None if rows is None else torch.tensor(rows, device=device)
        if not self._even:
            at = torch.arange(self.rows, device=device) if self._some is None else self._some
            self._row = at.unsqueeze(1)
        valid = None
        if counts is not None and min(counts) < width:
            valid = steps < torch.tensor(counts, device=device).unsqueeze(1)
        self.ctx = Context(turned, index, mask, causal=False, cache=self, valid=valid)

    def extend(self, layer: int, **new: Tensor) -> tuple[Tensor, ...]:
        """Store the new values [B, T, ...] of a layer; return all that its queries may need."""
        found, end = [], self._longest + self.width
        for name, value in new.items():
            stored = self.paged[layer, name]
            if self._even:
                stored = stored if self.rows == self.space else stored.narrow(0, 0, self.rows)
                stored.narrow(1, self._longest, self.width).copy_(value)
            else:
                stored[self._row, self._pos] = value
                some = self._some
                stored = stored.narrow(0, 0, self.rows) if some is None else stored[some]
            found.append(stored.narrow(1, 0, end))
        return tuple(found)

    def state(self, layer: int, name: str) -> Tensor:
        """Return a state [B, ...] of a layer as the tokens so far have left it."""
        state = self.states[layer, name]
        if self._some is not None:
            return state[self._some]
        state = state.narrow(0, 0, self.rows)
        return state.clone() if self.careful else state

    def commit(self, kept: Sequence[int] | None = None) -> None:
        """Make the states that the pass has left those of its rows, or of some of them."""
        for key, value in self.left.items():
            state = self.states[key]
            if self._some is not None:
                state[self._some] = value
            elif kept is not None:
                state[kept] = value[kept]
            elif value.data_ptr() != state.data_ptr():
                state.narrow(0, 0, len(value)).copy_(value)
        self.left = {}

    def join(self, entries: Sequence[Entry], sources: Sequence[Entry]) -> None:
        """Seat requests that have read equally many tokens.

        Args:
            entries: the requests.
            sources: for each, the one whose pages and state slot hold what it has read.
        """
        old, held = len(self.entries), entries[0].computed
        self.reserve(old + len(entries), held + 1)
        rows = slice(old, old + len(entries))
        places = [self.store.places(sources, held, n) for n in range(len(self.store.counts))]
        for key, value in self.paged.items():
            value[rows, :held] = self.store.paged[key][places[self.store.table[key]]]
        if self.states:
            slots = torch.tensor([source.slot for source in sources], device=self.store.device)
            for key, value in self.states.items():
                value[rows] = self.store.states[key][slots]
        for n, (entry, source) in enumerate(zip(entries, sources, strict=True)):
            # of what another has read, whole pages are shared, and the rest is on the desk alone
            whole = held // self.store.size * self.store.size
            entry.row, entry.clean = old + n, held if entry is source else whole
        self.entries = [*self.entries, *entries]

    def save(self, entry: Entry, end: int) -> None:
        """Write a row's tokens that its pages lack, up to `end`, into them."""
        if entry.clean >= end:
            return
        for key, value in self.paged.items():
            table = self.store.table[key]
            start = max(entry.clean, entry.pages[table].count(HOLE) * self.store.size)
            if start < end:
                places = self.store.places([entry], end, table)[0, start:]
                self.store.paged[key][places] = value[entry.row, start:end]
        entry.clean = end

    def leave(self, gone: Sequence[Entry], *, spoilt: bool) -> None:
        """Let requests go; the last rows move into the gaps.

        Args:
            gone: who leaves.
            spoilt: their values may not be finite, and a masked key still counts as 0 * NaN.
        """
        if not gone:
            return
        left = {id(entry) for entry in gone}
        if spoilt:
            rows = [entry.row for entry in gone]
            for value in (*self.paged.values(), *self.states.values()):
                value[rows] = 0
        stay = [entry for entry in self.entries if id(entry) not in left]
        movers = [entry for entry in stay if entry.row >= len(stay)]
        gaps = sorted(entry.row for entry in gone if entry.row < len(stay))
        if movers:
            longest = max(entry.computed for entry in movers)
            sources = [entry.row for entry in movers]
            for value in self.paged.values():
                value[gaps, :longest] = value[sources, :longest]
            for value in self.states.values():
                value[gaps] = value[sources]
            for entry, gap in zip(movers, gaps, strict=True):
                entry.row = gap
        for entry in gone:
            entry.row = -1
        self.entries = sorted(stay, key=lambda entry: entry.row)
        if not stay:  # the next ones may be few and short
            self.paged, self.states = {}, {}
            self.space, self.capacity, self.careful = 0, 0, False

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for so many rows of so many tokens."""
        if rows <= self.space and tokens <= self.capacity:
            return
        old = self.space, self.capacity
        if rows > self.space:
            self.space = max(rows, min(2 * self.space, 2 * rows))
        if tokens > self.capacity:
            self.capacity = max(tokens + LEAST // 2, 2 * self.capacity, LEAST)
        for key, pool in self.store.paged.items():
            made = pool.new_zeros(self.space, self.capacity, *pool.shape[1:])
            if key in self.paged:
                made[: old[0], : old[1]] = self.paged[key]
            self.paged[key] = made
        for key, pool in self.store.states.items():
            made = pool.new_zeros(self.space, *pool.shape[1:])
            if key in self.states:
                made[: old[0]] = self.states[key]
            self.states[key] = made
