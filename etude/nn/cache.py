"""What a model remembers between passes: slots declared by its mixers, allocated once.

A cache belongs to one model, and to its weights as they are: after a training step, make a new one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from etude.errors import EtudeError
from etude.nn.context import Packs, Turns
from etude.ops.attention import cache_mask
from etude.ops.rope import tables
from etude.typing import Bool, Int, Tensor

if TYPE_CHECKING:
    from etude.nn.decoder import Decoder

FEW = 128  # tokens of a pass up to which laid out matrices are read faster (one core, measured)


@dataclass(frozen=True, slots=True)
class Paged:
    """A slot that grows with the tokens: `shape` numbers each.

    `reach` is how many of the last tokens a query reads, its own included; None is all, and so is
    whatever has no such bound. What lies further back may be dropped.
    """

    name: str
    shape: tuple[int, ...]
    reach: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """A slot of fixed `shape` per sequence, zero before the first token.

    `dtype` None is the model's own; a recurrence is kept in float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


Slot = Paged | State


@runtime_checkable
class Mixer(Protocol):
    """A module that remembers: what it keeps between passes."""

    def slots(self) -> tuple[Slot, ...]:
        """Return what a cache holds for this layer."""
        ...


def _inner_first(part: Any) -> Any:
    # a matrix of another kind, as int8, is read as it stands
    matrix = type(part) in (torch.Tensor, torch.nn.Parameter) and part.ndim == 2
    return part.t().contiguous().t() if matrix else part


class Packing:
    """Weights as modules read them, made once; they must not change while it lives.

    Attributes:
        fixed: lay out at once, so that no pass rounds otherwise than the same pass before it.
    """

    def __init__(self, *, fixed: bool = False) -> None:
        self.fixed = fixed
        self._packs: dict[int, tuple[bool, tuple[Any, ...]]] = {}

    def packed(self, module: Packs, tokens: int = 1) -> tuple[Any, ...]:
        """Return a module's weights as it reads them, laid out by the first pass of few tokens.

        Matrices are then stored with the inner dimension first: on a CPU a product with a single
        row is up to 1.9 times as fast (128 x 256: 3.3 to 2.3 us, 256 x 704: 10.6 to 5.9 us), and
        one with 256 rows no faster.

        Args:
            module: whose weights.
            tokens: of the pass.
        """
        laid, parts = self._packs.get(id(module), (False, ()))
        lay = not laid and (self.fixed or tokens <= FEW)
        if lay or not parts:
            with torch.no_grad():
                parts = parts or module.pack()
                parts = tuple(_inner_first(part) for part in parts) if lay else parts
            self._packs[id(module)] = laid or lay, parts
        return parts

    def forget(self) -> None:
        """Lay the weights out anew when they are read next, for they have changed."""
        self._packs.clear()


class Cache(Packing):
    """Slots of all layers for a batch of rows of their own lengths.

    Args:
        model: the decoder that will fill the cache; gives slots, dtype and device.
        rows: sequences in the batch.
        capacity: tokens that each row can hold.

    Attributes:
        lengths: tokens held by each row.
        longest: the largest of them, known without asking the device.
    """

    def __init__(self, model: "Decoder", *, rows: int, capacity: int):
        super().__init__()
        weight = model.embed.weight
        self.capacity, self.longest = capacity, 0
        self.lengths = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self.slots = [
            {slot.name: self._empty(slot, weight, rows) for slot in slots}
            for slots in model.slots()
        ]
        steps = torch.arange(capacity, device=weight.device)
        self._tables = {
            (rope, dim): tables(steps, rope, dim, dtype=weight.dtype) for rope, dim in model.ropes
        }
        self._even = True  # all rows have the same length
        self._pos: Tensor | None = None  # of the tokens of this pass, when the rows differ
        self._new = 0

    def _empty(self, slot: Slot, weight: Tensor, rows: int) -> Tensor:
        if isinstance(slot, Paged):
            return weight.new_zeros(rows, self.capacity, *slot.shape)
        return weight.new_zeros(rows, *slot.shape, dtype=slot.dtype or weight.dtype)

    def packed(self, module: Packs, tokens: int = 0) -> tuple[Any, ...]:
        """Return a module's weights as it reads them; `tokens` are those of this pass."""
        return super().packed(module, tokens or len(self.lengths) * self._new)

    def begin(
        self, rows: int, new: int, mask: Bool[Tensor, "B T"] | None
    ) -> tuple[Bool[Tensor, "... 1 T S"] | None, bool]:
        """Make room for `new` tokens in each row.

        Args:
            rows: rows of the batch.
            new: positions of this pass.
            mask: false on padding, which must stand right of the tokens; None when there is none.

        Returns:
            The mask over the slots or None, and whether causal attention, with the new tokens last,
            says it all.

        Raises:
            EtudeError: the rows do not fit.
        """
        if rows != len(self.lengths):
            raise EtudeError("cache", f"{rows} rows", f"{len(self.lengths)}, as it was made for")
        if self.longest + new > self.capacity:
            found = f"{self.longest} + {new} tokens"
            raise EtudeError(
                "cache", found, f"at most {self.capacity}", "make one of more capacity"
            )
        if mask is not None and bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise EtudeError(
                "mask", "padding left of a token", "padding on the right when a cache is given"
            )
        self._new = new
        if self._even:
            self._pos = None
            return None, new > 1 or self.longest == 0
        steps = torch.arange(new, device=self.lengths.device)
        self._pos = self.lengths.unsqueeze(1) + steps
        return cache_mask(self._pos, self.longest + new), False

    def index(self) -> Int[Tensor, "#B T"]:
        """Return the place of each new token in its row: the number of tokens before it."""
        if self._pos is not None:
            return self._pos
        steps = torch.arange(self._new, device=self.lengths.device)
        return (steps + self.longest).unsqueeze(0)

    def turns(self) -> Turns:
        """Cosine and sine of the new tokens' positions, for each rope and head width."""
        if self._pos is not None:
            return {
                key: (cos[self._pos], sin[self._pos]) for key, (cos, sin) in self._tables.items()
            }
        start, new = self.longest, self._new
        return {
            key: (cos.narrow(0, start, new).unsqueeze(0), sin.narrow(0, start, new).unsqueeze(0))
            for key, (cos, sin) in self._tables.items()
        }

    def extend(self, layer: int, **new: Tensor) -> tuple[Tensor, ...]:
        """Store the new values [B, T, ...] of a layer; return all that its queries may need."""
        start, end, stored = self.longest, self.longest + self._new, self.slots[layer]
        if self._pos is None:
            for name, value in new.items():
                stored[name].narrow(1, start, self._new).copy_(value)
            if start == 0:
                return tuple(new.values())
        else:
            row = torch.arange(len(self.lengths), device=self.lengths.device).unsqueeze(1)
            for name, value in new.items():
                stored[name][row, self._pos] = value
        return tuple([stored[name].narrow(1, 0, end) for name in new])

    def state(self, layer: int, name: str) -> Tensor:
        """Return a state [B, ...] of a layer as the tokens so far have left it."""
        return self.slots[layer][name]

    def put(self, layer: int, **new: Tensor) -> None:
        """Store the states [B, ...] of a layer, which padding must not have moved."""
        for name, value in new.items():
            self.slots[layer][name].copy_(value)

    def commit(self, mask: Bool[Tensor, "B T"] | None) -> None:
        """Count the tokens of the pass that has just run; padding will be overwritten."""
        if mask is None:
            self.lengths += self._new
            self.longest += self._new
            return
        self.lengths += mask.sum(1)
        self.longest = int(self.lengths.max())
        self._even = bool((self.lengths == self.longest).all())

    def keep(self, rows: Int[Tensor, " R"]) -> None:
        """Keep only these rows, in this order: finished ones leave the batch."""
        self.lengths = self.lengths[rows]
        if not self._even and len(rows):
            self.longest = int(self.lengths.max())
            self._even = bool((self.lengths == self.longest).all())
        self.slots = [{name: value[rows] for name, value in slot.items()} for slot in self.slots]
