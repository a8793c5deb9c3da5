"""Text as a stage reads it: the source of micro-batches, and the moves of its mixture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from etude.data.loader import Batch, Loader, Move
from etude.optim import schedule
from etude.recipe import parts
from etude.train.loop import Progress


def moves(data: parts.Data, mixes: Sequence[Mapping[str, float]]) -> list[Move]:
    """Return the changes of a mixture in rows.

    Args:
        data: of the stage.
        mixes: what of its mixtures can be had here, the first one included.
    """
    pairs = zip(mixes[1:], data.changes, strict=True)
    return [(mix, move.at // data.length, move.over // data.length) for mix, move in pairs]


def text(
    data: parts.Data, batch: parts.Batch, world: int, loader: Callable[[int, str], Loader]
) -> "Packed | Alternating":
    """Return the source of a stage that reads text.

    Args:
        data, batch: of the stage.
        world: ranks.
        loader: from the length of a row, and a word that is part of its seed, to the rows.
    """
    rows = Packed(loader(data.length, ""), batch, world)
    if data.short is None:
        return rows
    size = data.short.length
    short = Packed(loader(size, " short"), _shorter(batch, data.length // size), world)
    return Alternating(rows, short, data.short.share)


def _shorter(batch: parts.Batch, times: int) -> parts.Batch:
    """The batch with so many times as many rows, for rows so many times as short."""
    micro, first = batch.micro, batch.ramp_from
    return replace(
        batch,
        rows=batch.rows * times,
        micro=micro and micro * times,
        ramp_from=first and first * times,
    )


class Packed:
    """`train.loop.Source` over packed token sets, with the recipe's batch growth."""

    def __init__(self, loader: Loader, batch: parts.Batch, world: int) -> None:
        self.loader, self.batch, self.world = loader, batch, world

    def next(self, progress: Progress) -> Sequence[Batch]:
        """Return this rank's micro-batches of the next step."""
        rows = schedule.rows(self.batch, progress.tokens, ranks=self.world)
        found = self.loader.next(rows)
        return found.split(self.batch.micro) if self.batch.micro else [found]

    def metrics(self) -> Mapping[str, float]:
        """Return passes over each set so far."""
        return {f"epochs_{name}": round(passes, 3) for name, passes in self.loader.epochs.items()}

    def state(self) -> dict[str, Any]:
        """Return the position in the data."""
        return self.loader.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a position."""
        self.loader.restore(state)


class Alternating:
    """`train.loop.Source`: steps of long rows, and among them, evenly spread, steps of short ones.

    Args:
        long: of most steps.
        short: of the others.
        share: of the steps that are short.
    """

    def __init__(self, long: Packed, short: Packed, share: float) -> None:
        self.long, self.short, self.share = long, short, share

    def next(self, progress: Progress) -> Sequence[Batch]:
        """Return this rank's micro-batches; the number of the step alone says which length."""
        turn = int((progress.step + 1) * self.share) > int(progress.step * self.share)
        return (self.short if turn else self.long).next(progress)

    def metrics(self) -> Mapping[str, float]:
        """Return passes over each set so far, in rows of both lengths."""
        pair = self.long.metrics(), self.short.metrics()
        return {name: round(pair[0][name] + pair[1][name], 3) for name in pair[0]}

    def state(self) -> dict[str, Any]:
        """Return both positions in the data."""
        return {"long": self.long.state(), "short": self.short.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from both."""
        self.long.restore(state["long"])
        self.short.restore(state["short"])
