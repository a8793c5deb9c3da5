"""The arithmetic around a step: what to divide by, how to clip, what was seen."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from etude.errors import EtudeError
from etude.nn.decoder import Scores
from etude.nn.mtp import shift_labels
from etude.objectives.language import IGNORE
from etude.parallel.mesh import Ranks
from etude.typing import Int, Tensor


class Micro(Protocol):
    """Rows that go through the model together, on one rank; a source may give more fields.

    A float attribute `temperature`, when there is one, divides the logits; experts `routes`
    [B, T, layers, active] are taken in the place of the routers' choice; `shared` says which rows
    begin alike (`nn.shared`).
    """

    @property
    def ids(self) -> Int[Tensor, "B T"]:
        """Token ids."""
        ...

    @property
    def labels(self) -> Int[Tensor, "B T"]:
        """The id each position predicts, -100 where nothing is trained."""
        ...

    @property
    def segments(self) -> Int[Tensor, "B T"]:
        """Document of each token, 0 for padding."""
        ...

    @property
    def pos(self) -> Int[Tensor, "B T"]:
        """Position of each token in its document."""
        ...

    @property
    def tokens(self) -> int:
        """Labels that count."""
        ...


class Objective(Protocol):
    """A loss per token. With an attribute `entropy = True` the scores come with entropies.

    With `pairs = True` the values to log are one per pair and are divided as the loss is. A method
    `reader(micro)` gives what reads the hidden states in the place of the labels' scores.
    """

    def __call__(self, scores: Scores, micro: Any, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each token's loss [B, T], 0 where not counted, and per-token values to log."""
        ...

    def denominator(self, micro: Any, /) -> float:
        """This micro-batch's part of what the sum of losses is divided by."""
        ...


M = TypeVar("M", bound=Micro)


def to(micro: M, device: torch.device) -> M:
    """The same micro-batch with its tensors on `device`."""
    held = {f.name: getattr(micro, f.name) for f in fields(micro)}  # type: ignore[arg-type]
    moved = {name: v.to(device) for name, v in held.items() if isinstance(v, Tensor)}
    return replace(micro, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Counts:
    """What one step divides by, over all its micro-batches and ranks.

    Attributes:
        loss: the objective's denominator.
        labels: counted labels.
        rows: rows with at least one token.
        tokens: tokens that are not padding.
        mtp: labels of each extra prediction depth.
    """

    loss: float
    labels: float
    rows: float
    tokens: int
    mtp: tuple[float, ...]


def count(micros: Sequence[Micro], objective: Objective, *, depths: int, ranks: Ranks) -> Counts:
    """Count a step before its first forward, with one sum over ranks.

    Raises:
        EtudeError: ranks brought different numbers of micro-batches; they run forward together or
        not at all.
    """
    own = torch.zeros(5 + depths, dtype=torch.float64)
    for micro in micros:
        here = micro.segments != 0
        ahead = [shift_labels(micro.labels, micro.segments, k + 1) for k in range(depths)]
        sums = [here.any(dim=1).sum(), here.sum(), *((labels != IGNORE).sum() for labels in ahead)]
        found = [1.0, objective.denominator(micro), micro.tokens, *map(float, sums)]
        own += torch.tensor(found, dtype=torch.float64)
    brought = len(micros)
    total, loss, labels, rows, tokens, *mtp = ranks.sum(own.to(ranks.device)).tolist()
    if total != brought * ranks.world:
        found = f"rank {ranks.rank} brought {brought} micro-batches of {int(total)}"
        raise EtudeError("source", found, f"the same number on all {ranks.world} ranks", code=1)
    return Counts(loss, labels, rows, int(tokens), tuple(mtp))


def clip(params: Sequence[Tensor], limit: float) -> float:
    """Scale all gradients together to a global norm of at most `limit`; return the norm before."""
    norm = get_total_norm([p.grad for p in params if p.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    clip_grads_with_norm_(params, limit, norm)
    return float(norm)


class Meter:
    """Sums and extremes over the micro-batches and ranks of one step, read once at its end.

    Names that end in `_min` or `_max` keep the extreme over counted tokens; all others are summed.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.sums: dict[str, Tensor] = {}
        self.tops: dict[str, Tensor] = {}
        self.loads: dict[int, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar, already divided by a count of the whole step."""
        self.sums[name] = self.sums.get(name, 0) + value.detach().double()

    def add_tokens(self, seen: dict[str, Tensor], counted: Tensor, labels: float) -> None:
        """Add per-token values [B, T] of the tokens where `counted`."""
        for name, value in seen.items():
            value = value.detach().double()
            if name.endswith(("_min", "_max")):
                sign = -1.0 if name.endswith("_min") else 1.0
                top = torch.where(counted, sign * value, -torch.inf).amax()
                self.tops[name] = torch.maximum(self.tops.get(name, top), top)
            else:
                self.add(name, torch.where(counted, value, 0.0).sum() / max(labels, 1.0))

    def add_load(self, layer: int, counts: Tensor) -> None:
        """Add tokens per expert of one MoE layer."""
        self.loads[layer] = self.loads.get(layer, 0) + counts

    def read(self) -> dict[str, float]:
        """Every value over all ranks, and the loads summed in place."""
        names, tops = sorted(self.sums), sorted(self.tops)
        device = self.ranks.device
        zero = torch.zeros(0, dtype=torch.float64, device=device)
        sizes = [len(names), *(len(self.loads[layer]) for layer in sorted(self.loads))]
        parts = [torch.stack([self.sums[name] for name in names]) if names else zero]
        parts += [self.loads[layer].double() for layer in sorted(self.loads)]
        values, *loads = self.ranks.sum(torch.cat(parts)).split(sizes)
        self.loads = dict(zip(sorted(self.loads), loads, strict=True))
        result = dict(zip(names, values.tolist(), strict=True))
        if tops:
            found = self.ranks.max(torch.stack([self.tops[name] for name in tops])).tolist()
            result |= {n: -v if n.endswith("_min") else v for n, v in zip(tops, found, strict=True)}
        return result
