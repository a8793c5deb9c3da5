"""Where caches are: pages and state slots of every layer, and requests that read their prompts.

The layers say what they keep (`slots()`). What grows with the tokens is in pages, flat over their
tokens; what does not is in slots: one per request that reads, and one per snapshot.
"""

from collections.abc import Sequence
from typing import Any

import torch

from etude.engine.entry import HOLE, Entry
from etude.engine.settings import Settings
from etude.errors import EtudeError
from etude.nn.cache import Mixer, Packing, Paged, Slot
from etude.nn.context import Context, Turns
from etude.nn.decoder import Decoder
from etude.nn.residual import Residual
from etude.ops.rope import tables
from etude.typing import Int, Tensor

MOST = 65_536  # tokens of all pages unless said otherwise


def layers(model: Decoder, *, ahead: bool) -> list[tuple[Slot, ...]]:
    """What each layer keeps; with `ahead`, the block that speculates is the last of them."""
    found = model.slots()
    if ahead and model.mtp is not None:
        part = dict(model.mtp.layer.named_children()).get("mixer")
        mixer = part.op if isinstance(part, Residual) else None
        found.append(mixer.slots() if isinstance(mixer, Mixer) else ())
    return found


class Store(Packing):
    """Memory of all layers, the weights as they are read, and the tables of positions.

    Args:
        model: the decoder that fills it.
        settings: how much there is; no state slots are made where no layer has states.
        guesses: guesses per step; with some, also remember for the block that speculates.

    Attributes:
        reaches: how far back the layers of each kind of pages read; None is all, and stands first.
        counts: pages of each kind.
        table: kind of the pages of each layer and slot.
        context: tokens that one request can have.
    """

    def __init__(self, model: Decoder, settings: Settings, *, guesses: int = 0):
        super().__init__(fixed=settings.deterministic)
        self.model, self.size = model, settings.page_size
        self.weight = model.embed.weight
        self.device = self.weight.device
        kept = layers(model, ahead=guesses > 0)
        held = [(layer, slot) for layer, slots in enumerate(kept) for slot in slots]
        # without paged layers there are still pages, by which prompts are found
        reaches = {slot.reach for _, slot in held if isinstance(slot, Paged)} or {None}
        self.reaches = sorted(reaches, key=lambda reach: (reach is not None, -(reach or 0)))
        self.counts, self.context = self._sizes(settings, guesses)
        slots = settings.max_running + (settings.snapshots if settings.reuse else 0)
        self.table: dict[tuple[int, str], int] = {}
        self.paged: dict[tuple[int, str], Tensor] = {}
        self.states: dict[tuple[int, str], Tensor] = {}
        for layer, slot in held:
            key = layer, slot.name
            if isinstance(slot, Paged):
                self.table[key] = self.reaches.index(slot.reach)
                count = self.counts[self.table[key]] * self.size
                # neither is zeroed: only what has been written is read, and what a CPU has not
                # touched is no memory yet
                self.paged[key] = self.weight.new_empty(count, *slot.shape, requires_grad=False)
                if layer >= len(model.layers):
                    self.paged[key].zero_()  # a pass that fails midway leaves gaps, which are read
            else:
                how = {"dtype": slot.dtype or self.weight.dtype, "requires_grad": False}
                self.states[key] = self.weight.new_empty(slots, *slot.shape, **how)
        self._tables: Turns = {}
        self._length = 0

    def _sizes(self, settings: Settings, guesses: int) -> tuple[list[int], int]:
        """Pages of each kind; and tokens that one request can have."""
        size, longest = self.size, self.model.arch.max_length
        pages, context = settings.pages, longest
        if pages is None:
            pages = max(-(-longest // size), min(settings.max_running * longest, MOST) // size)
        counts = []
        for reach in self.reaches:
            once = -(-longest // size)
            if reach is not None:  # at once: what the oldest token of a pass reads, and the pass
                once = min(once, -(-(reach + max(settings.span, guesses + 1)) // size) + 1)
            if once > pages:
                context = min(context, pages * size)
            counts.append(pages if reach is None else min(pages, settings.max_running * once))
        return counts, context

    def turns(self, longest: int) -> Turns:
        """Cosine and sine [S, 1, K] of all positions up to `longest` at least."""
        if longest > self._length:
            self._length = max(longest, min(2 * self._length, self.model.arch.max_length), 256)
            steps = torch.arange(self._length, device=self.device)
            self._tables = {
                (rope, width): tables(steps, rope, width, dtype=self.weight.dtype)
                for rope, width in self.model.ropes
            }
        return self._tables

    def places(self, entries: Sequence[Entry], end: int, table: int) -> Int[Tensor, "B S"]:
        """Where the first `end` tokens of each request are, in pages of one kind.

        Nothing reads a hole, but a masked value must still be finite: there stands the place of a
        token of the request's own last page.

        Raises:
            EtudeError: a request has too few pages or one that does not exist.
        """
        count, most = -(-end // self.size), self.counts[table]
        rows = [entry.pages[table][:count] for entry in entries]
        for row in rows:
            if len(row) < count or not HOLE <= min(row) <= max(row) < most or row[-1] == HOLE:
                raise EtudeError(
                    "block table", f"{row[:8]}...", f"{count} pages below {most}", code=1
                )
        first = torch.tensor(rows, device=self.device).unsqueeze(2) * self.size  # [B, P, 1]
        steps = torch.arange(self.size, device=self.device)
        return torch.where(first < 0, first[:, -1:], first + steps).flatten(1)[:, :end]

    def clear(self, slot: int) -> None:
        """Set a state slot to what it is before the first token."""
        for value in self.states.values():
            value[slot] = 0

    def copy(self, source: int, target: int) -> None:
        """Copy one state slot to another."""
        for value in self.states.values():
            value[target] = value[source]


class View:
    """The memory of the requests of one block, as its mixers see it.

    Attributes:
        rows, width: of the block.
        ctx: what the pass tells about it.
    """

    rows: int
    width: int
    ctx: Context

    def __init__(self, store: Store):
        self.store = store
        # states as this pass leaves them: kept apart until it has succeeded
        self.left: dict[tuple[int, str], Tensor] = {}

    def packed(self, module: Any) -> tuple[Any, ...]:
        """Return a module's weights as it reads them, laid out once."""
        return self.store.packed(module, self.rows * self.width)

    def put(self, layer: int, **new: Tensor) -> None:
        """Keep the states [B, ...] that this pass leaves; `commit` makes them so."""
        for name, value in new.items():
            self.left[layer, name] = value


class Reading(View):
    """Requests that read the same span of their prompts, straight into their pages.

    Args:
        store: all memory.
        entries: the requests, one row each.
        start: tokens that each has read before.
        count: tokens that each reads now.
    """

    def __init__(self, store: Store, entries: Sequence[Entry], start: int, count: int):
        super().__init__(store)
        self.rows, self.width, self.start, self.end = len(entries), count, start, start + count
        self.places = [store.places(entries, self.end, n) for n in range(len(store.counts))]
        # pages side by side are read where they are
        self.first = [-1] * len(self.places)
        needed = -(-self.end // store.size)
        for table, held in enumerate(entries[0].pages if self.rows == 1 else ()):
            if held[:needed] == list(range(held[0], held[0] + needed)):
                self.first[table] = held[0] * store.size
        self.slots = torch.tensor([entry.slot for entry in entries], device=store.device)
        index = torch.arange(start, self.end, device=store.device).unsqueeze(0)
        turns = {
            key: (cos[None, start : self.end], sin[None, start : self.end])
            for key, (cos, sin) in store.turns(self.end).items()
        }
        # one token reads all there is; more are the last of the places, without a mask
        self.ctx = Context(turns, index, causal=start == 0 or count > 1, cache=self)

    def extend(self, layer: int, **new: Tensor) -> tuple[Tensor, ...]:
        """Store the new values [B, T, ...] of a layer; return all that its queries may need."""
        found = []
        for name, value in new.items():
            pool, table = self.store.paged[layer, name], self.store.table[layer, name]
            first, places = self.first[table], self.places[table]
            if first >= 0:
                pool.narrow(0, first + self.start, self.width).copy_(value[0])
            else:
                pool[places[:, self.start :]] = value
            if self.start == 0:
                found.append(value)
            elif first >= 0:
                found.append(pool.narrow(0, first, self.end).unsqueeze(0))
            else:
                found.append(pool[places])
        return tuple(found)

    def state(self, layer: int, name: str) -> Tensor:
        """Return a state [B, ...] of a layer as the tokens so far have left it."""
        return self.store.states[layer, name][self.slots]

    def commit(self, kept: Sequence[int] | None = None) -> None:
        """Make the states that the pass has left those of the requests."""
        for key, value in self.left.items():
            self.store.states[key][self.slots] = value
        self.left = {}
