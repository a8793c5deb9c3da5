"""Memory that outlives a request: pages, snapshots, the weights as they are read, positions.

The layers say what they keep (`slots()`). What grows with the tokens is in pages, flat over their
tokens; what does not is in snapshots, copies of a state at the border of a page. Both are only ever
written from a row of the desk and read into one.
"""

import torch

from etude.engine.entry import HOLE, Entry
from etude.engine.settings import Settings
from etude.errors import EtudeError
from etude.nn.cache import Mixer, Packing, Paged, Slot, State
from etude.nn.context import Turns
from etude.nn.decoder import Decoder
from etude.nn.residual import Residual
from etude.ops.rope import tables
from etude.typing import Int, Tensor

MOST = 65_536  # tokens of all pages unless said otherwise


class Store(Packing):
    """Pages and snapshots of all layers; without reuse they are counted, and take no memory.

    Attributes:
        guesses: per step; with some, the block that speculates is the last layer.
        reaches: how far back the layers of each kind of pages read; None is all, and stands first.
        counts: pages of each kind.
        table: kind of the pages of each layer and slot.
        context: tokens that one request can have.

    Raises:
        EtudeError: guesses are asked of a model that cannot.
    """

    def __init__(self, model: Decoder, settings: Settings):
        super().__init__(fixed=settings.deterministic)
        self.model, self.size = model, settings.page_size
        self.weight = model.embed.weight
        self.device = self.weight.device
        ahead = _ahead(model)
        self.guesses = _guesses(settings, able=ahead is not None)
        kept = [*model.slots(), *([ahead or ()] if self.guesses else [])]
        held = [(layer, slot) for layer, slots in enumerate(kept) for slot in slots]
        # without paged layers there are still pages, by which prompts are found
        reaches = {slot.reach for _, slot in held if isinstance(slot, Paged)} or {None}
        self.reaches = sorted(reaches, key=lambda reach: (reach is not None, -(reach or 0)))
        self.counts, self.context = self._sizes(settings)
        self.table: dict[tuple[int, str], int] = {}
        self.paged: dict[tuple[int, str], Tensor] = {}
        self.states: dict[tuple[int, str], Tensor] = {}
        for layer, slot in held:
            key, dtype = (layer, slot.name), self.weight.dtype
            if isinstance(slot, Paged):
                self.table[key] = self.reaches.index(slot.reach)
                count, pool = self.counts[self.table[key]] * self.size, self.paged
            else:
                count, pool, dtype = settings.snapshots, self.states, slot.dtype or dtype
            # not zeroed: what a CPU has not touched is no memory yet
            how = {"dtype": dtype, "requires_grad": False}
            pool[key] = self.weight.new_empty(count * settings.reuse, *slot.shape, **how)
        self._tables: Turns = {}
        self._length = 0

    def _sizes(self, settings: Settings) -> tuple[list[int], int]:
        """Pages of each kind; and tokens that one request can have."""
        size, longest = self.size, self.model.arch.max_length
        pages, context = settings.pages, longest
        if pages is None:
            pages = max(-(-longest // size), min(settings.max_running * longest, MOST) // size)
        counts = []
        for reach in self.reaches:
            once = -(-longest // size)
            if reach is not None:  # at once: what the oldest token of a pass reads, and the pass
                once = min(once, -(-(reach + max(settings.span, self.guesses + 1)) // size) + 1)
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

    def places(self, entry: Entry, start: int, end: int) -> list[Int[Tensor, " N"]]:
        """Where tokens up to `end` of a request are, in pages of each kind.

        They are those from `start` on, or from behind the holes where those reach further.

        Raises:
            EtudeError: the request has too few pages or one that does not exist.
        """
        found = []
        for held, most in zip(entry.pages, self.counts, strict=True):
            first = max(start, held.count(HOLE) * self.size) // self.size
            pages = held[first : -(-end // self.size)]
            if (first + len(pages)) * self.size < end or not all(0 <= n < most for n in pages):
                told = f"{end} tokens in pages below {most}"
                raise EtudeError("block table", f"{held[:8]}...", told, code=1)
            steps = torch.arange(self.size, device=self.device)
            at = torch.tensor(pages, dtype=torch.long, device=self.device).unsqueeze(1)
            where = (at * self.size + steps).flatten()[: max(end - first * self.size, 0)]
            found.append(where[max(start - first * self.size, 0) :])
        return found


def _ahead(model: Decoder) -> tuple[Slot, ...] | None:
    """What the block that speculates keeps; None where there is none, or one with states."""
    if model.mtp is None:
        return None
    part = dict(model.mtp.layer.named_children()).get("mixer")
    mixer = part.op if isinstance(part, Residual) else None
    kept = mixer.slots() if isinstance(mixer, Mixer) else ()
    return None if any(isinstance(slot, State) for slot in kept) else kept


def _guesses(asked: Settings, *, able: bool) -> int:
    """Guesses per step: as asked, or two where the model can guess."""
    if asked.speculate and not able:
        found = "no MTP block of attention layers"
        raise EtudeError("engine: speculate", found, "one, or speculate = 0")
    wanted = 2 * able if asked.speculate is None else asked.speculate
    return 0 if asked.deterministic else wanted
