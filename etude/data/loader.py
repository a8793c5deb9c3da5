"""The loader: weighted sets to batches, endless, resumed exactly, the same for any number of ranks.

Each row of the global batch draws its set with a random number that depends only on (seed, row
number), so the share of rows equals the weights, and the cursor of each set says the rest. Ranks
walk the same rows and build only their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from etude.data.pack import IGNORED, PACKERS, Row, Stream, fill, join
from etude.data.tokens import TokenSet
from etude.errors import EtudeError, closest
from etude.files import digest
from etude.typing import Int, Tensor

Move = tuple[Mapping[str, float], int, int]
ROUND = 16  # padded batches are as wide as their longest row, rounded up to this


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step.

    Attributes:
        ids: tokens; 0 where padded.
        labels: the token each position predicts, -100 where none counts.
        segments: document number inside the row, from 1; 0 is padding.
        pos: position inside the document.
        tokens: labels that count, on this rank.
        whole: every row is one document and full, so that causal attention says it all.
    """

    ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]
    pos: Int[Tensor, "B T"]
    tokens: int
    whole: bool = False

    def split(self, rows: int) -> list["Batch"]:
        """Cut into micro-batches of at most `rows` rows."""
        parts = zip(
            *(x.split(rows) for x in (self.ids, self.labels, self.segments, self.pos)), strict=True
        )
        return [
            Batch(*part, tokens=int((part[1] != IGNORED).sum()), whole=self.whole) for part in parts
        ]


class Loader:
    """Batches from weighted token sets.

    Args:
        sets: token sets by name.
        weights: share of rows of each, any positive scale; only sets named here are read. With
            "truncate" and "best_fit" rows are full, so this is the share of tokens; with "pad" it
            is the share of documents.
        length: tokens of a row.
        rows: rows of the global batch, unless `next` is told otherwise.
        changes: (weights, first row, rows) of moves to other weights: from that row on, and over so
            many rows, every share moves in a straight line.
        seed: of order and draws.
        pack: "truncate", "best_fit" or "pad" (`etude.data.pack`).
        joined: a row is one document, whatever it is packed from (`pack.join`).
        rank, world: this process and how many there are; each gets `rows / world` neighbouring
            rows.

    Raises:
        EtudeError: an empty set, an unknown name, weights that are not positive, rows that ranks
        cannot share.
    """

    def __init__(
        self,
        sets: Mapping[str, TokenSet],
        weights: Mapping[str, float],
        *,
        length: int,
        rows: int,
        seed: int,
        pack: str = "truncate",
        joined: bool = False,
        changes: Sequence[Move] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        mixes = [weights, *(mix for mix, _, _ in changes)]
        for mix in mixes:
            _check_arguments(sets, mix, length=length, pack=pack)
        self.names = sorted({name for mix in mixes for name, weight in mix.items() if weight > 0})
        self.sets = {name: sets[name] for name in self.names}
        self.length, self.rows, self.seed, self.pack = length, rows, seed, pack
        self.joined = joined
        self.rank, self.world = rank, world
        self._share, *later = (self._cumulated(mix) for mix in mixes)
        self._moves = [(mix, *move[1:]) for mix, move in zip(later, changes, strict=True)]
        self._row = 0
        self._streams: dict[str, Stream] = {
            name: PACKERS[pack](one.lengths, length, seed, name) for name, one in self.sets.items()
        }
        for name, count in self.dropped.items():
            if count == len(self.sets[name]):
                longest = int(self.sets[name].lengths.max())
                do = f"raise length to {longest}"
                raise EtudeError(name, f"no document fits into {length} tokens", do=do)

    @property
    def dropped(self) -> dict[str, int]:
        """Documents left out of each set because they are longer than a row ("pad" only)."""
        return {name: getattr(stream, "dropped", 0) for name, stream in self._streams.items()}

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each set so far."""
        return {name: stream.epochs() for name, stream in self._streams.items()}

    def next(self, rows: int | None = None) -> Batch:
        """Return this rank's rows of the next global batch.

        Args:
            rows: rows of the global batch this time; the ramp of a batch size changes it from step
                to step.

        Raises:
            EtudeError: ranks cannot share the rows evenly.
        """
        rows = self.rows if rows is None else rows
        if rows < 1 or rows % self.world:
            raise EtudeError("rows", str(rows), f"a positive multiple of the {self.world} ranks")
        plan = self._plan(rows)
        width = self.length
        if self.pack == "pad":
            longest = max(sum(span.size for span in row) for _, row in plan)
            width = min(self.length, -(-longest // ROUND) * ROUND)
        own = rows // self.world
        return self._build(plan[self.rank * own : (self.rank + 1) * own], width)

    def _plan(self, rows: int) -> list[tuple[str, Row]]:
        chance = _uniform(self.seed, self._row, rows)
        drawn = (chance[:, None] >= self._shares(np.arange(self._row, self._row + rows))).sum(1)
        self._row += rows
        names = [self.names[min(i, len(self.names) - 1)] for i in drawn]
        return [(name, self._streams[name].next()) for name in names]

    def _cumulated(self, weights: Mapping[str, float]) -> np.ndarray:
        share = np.array([weights.get(name, 0.0) for name in self.names], float)
        return np.cumsum(share / share.sum())

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        """Cumulated shares [rows, sets] in force at each row, counted from the beginning."""
        found = np.broadcast_to(self._share, (len(rows), len(self.names)))
        for mix, first, length in self._moves:
            done = np.clip((rows - first + 1) / max(length, 1), 0, 1)[:, None]
            found = found + done * (mix - found)
        return found

    def _build(self, plan: list[tuple[str, Row]], width: int) -> Batch:
        shape = (len(plan), width)
        ids, segments, pos = (np.zeros(shape, np.int64) for _ in range(3))
        labels = np.full(shape, IGNORED, np.int64)
        tokens = sum(
            fill(self.sets[name], row, ids[i], labels[i], segments[i], pos[i])
            for i, (name, row) in enumerate(plan)
        )
        if self.joined:
            tokens += sum(map(join, ids, labels, segments, pos))
        ids_, labels_, segments_, pos_ = map(torch.from_numpy, (ids, labels, segments, pos))
        whole = self.joined and bool((segments == 1).all())
        return Batch(ids_, labels_, segments_, pos_, tokens, whole)

    def state(self) -> dict[str, Any]:
        """Return the position in the data: a few numbers, the same on every rank."""
        cursors = {name: list(stream.cursor) for name, stream in self._streams.items()}
        return {"key": self._key(), "row": self._row, "cursors": cursors}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken, on any number of ranks.

        Raises:
            EtudeError: the state belongs to other data, weights, length, packing or seed.
        """
        if state.get("key") != self._key():
            found = "a position saved with other data, weights, length, packing or seed"
            raise EtudeError(
                "data position", found, do="start the stage anew or restore its settings"
            )
        self._row = int(state["row"])
        for name, cursor in state["cursors"].items():
            self._streams[name].cursor = list(cursor)

    def _key(self) -> str:
        sets = [f"{name} {self.sets[name].key}" for name in self.names]
        share = self._share.round(9).tolist()
        pack = f"{self.pack} joined" if self.joined else self.pack
        moves = [str((mix.round(9).tolist(), *rest)) for mix, *rest in self._moves]
        return digest(*sets, str(share), *moves, str(self.length), pack, str(self.seed))


def _check_arguments(
    sets: Mapping[str, TokenSet], weights: Mapping[str, float], *, length: int, pack: str
) -> None:
    if pack not in PACKERS:
        raise EtudeError("pack", repr(pack), " | ".join(PACKERS), closest(pack, PACKERS))
    if length < 2:
        raise EtudeError("length", str(length), "at least 2: a token and the one it predicts")
    for name, weight in weights.items():
        if name not in sets:
            raise EtudeError(f"weights.{name}", "no such set", ", ".join(sets), closest(name, sets))
        if not weight >= 0:
            raise EtudeError(f"weights.{name}", str(weight), "a number from 0 up")
        if weight > 0 and not len(sets[name]):
            raise EtudeError(
                name, "the set is empty", do="build the data again or give it weight 0"
            )
    if not sum(weights.values()) > 0:
        raise EtudeError("weights", "no set has a share", "at least one weight above 0")


def _uniform(seed: int, first: int, count: int) -> np.ndarray:
    """Numbers in [0, 1) from (seed, index) alone: splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = np.arange(first, first + count, dtype=np.uint64)
        x = (x + np.uint64(seed % 2**32 + 1) * np.uint64(2**32)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53
