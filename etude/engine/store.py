"""Where caches are: pages and state slots of every layer, and requests that read their prompts.

The layers say what they keep (`slots()`). What grows with the tokens is in pages, flat over their
tokens; what does not is in slots: one per request that reads, and one per snapshot.
"""

from collections.abc import Sequence
from typing import Any

import torch

from etude.engine.entry import Entry
from etude.errors import EtudeError
from etude.nn.cache import Mixer, Packing, Paged, Slot
from etude.nn.context import Context, Turns
from etude.nn.decoder import Decoder
from etude.nn.residual import Residual
from etude.ops.rope import tables
from etude.typing import Int, Tensor


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
        pages: pages in all.
        size: tokens of a page.
        slots: state slots, those of snapshots included; none are made where no layer has states.
        ahead: also remember for the block that speculates.
    """

    def __init__(self, model: Decoder, *, pages: int, size: int, slots: int, ahead: bool = False):
        super().__init__()
        self.model, self.size, self.pages = model, size, pages
        self.weight = model.embed.weight
        self.device = self.weight.device
        self.layers = layers(model, ahead=ahead)
        self.paged: dict[tuple[int, str], Tensor] = {}
        self.states: dict[tuple[int, str], Tensor] = {}
        for layer, held in enumerate(self.layers):
            for slot in held:
                if isinstance(slot, Paged):
                    # neither is zeroed: only what has been written is read, and what a CPU has not
                    # touched is no memory yet
                    made = self.weight.new_empty(pages * size, *slot.shape, requires_grad=False)
                    if layer >= len(model.layers):
                        made.zero_()  # a pass that fails midway leaves gaps here, which are read
                    self.paged[layer, slot.name] = made
                else:
                    how = {"dtype": slot.dtype or self.weight.dtype, "requires_grad": False}
                    self.states[layer, slot.name] = self.weight.new_empty(slots, *slot.shape, **how)
        self._tables: Turns = {}
        self._length = 0

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

    def places(self, pages: Sequence[Sequence[int]], end: int) -> Int[Tensor, "B S"]:
        """Where the first `end` tokens of each row are, given its pages.

        Raises:
            EtudeError: a row has too few pages or one that does not exist.
        """
        count = -(-end // self.size)
        for row in pages:
            if len(row) < count or not 0 <= min(row) <= max(row) < self.pages:
                expected = f"{count} pages below {self.pages}"
                raise EtudeError("block table", f"{list(row)[:8]}...", expected, code=1)
        held = torch.tensor([row[:count] for row in pages], device=self.device)
        steps = torch.arange(self.size, device=self.device)
        return (held.unsqueeze(2) * self.size + steps).flatten(1)[:, :end]

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
        return self.store.packed(module)

    def extend(self, layer: int, **new: Tensor) -> tuple[Tensor, ...]:
        """Store the new values [B, T, ...] of a layer; return all that its queries may need."""
        raise NotImplementedError

    def state(self, layer: int, name: str) -> Tensor:
        """Return a state [B, ...] of a layer as the tokens so far have left it."""
        raise NotImplementedError

    def commit(self, kept: Sequence[int] | None = None) -> None:
        """Make the states that the pass has left those of its rows, or of some of them."""
        raise NotImplementedError

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
        self.places = store.places([entry.pages for entry in entries], self.end)
        self.new = self.places[:, start:]
        # pages side by side are read where they are
        first = entries[0].pages
        needed = -(-self.end // store.size)
        beside = self.rows == 1 and first[:needed] == list(range(first[0], first[0] + needed))
        self.first = first[0] * store.size if beside else -1
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
            pool = self.store.paged[layer, name]
            if self.first >= 0:
                pool.narrow(0, self.first + self.start, self.width).copy_(value[0])
            else:
                pool[self.new] = value
            if self.start == 0:
                found.append(value)
            elif self.first >= 0:
                found.append(pool.narrow(0, self.first, self.end).unsqueeze(0))
            else:
                found.append(pool[self.places])
        return tuple(found)

    def state(self, layer: int, name: str) -> Tensor:
        """Return a state [B, ...] of a layer as the tokens so far have left it."""
        return self.store.states[layer, name][self.slots]

    def commit(self, kept: Sequence[int] | None = None) -> None:
        """Make the states that the pass has left those of the requests."""
        for key, value in self.left.items():
            self.store.states[key][self.slots] = value
        self.left = {}
