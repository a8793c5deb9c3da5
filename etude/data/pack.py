"""Packing: which pieces of which documents share a row, and what each position of a row learns.

Three ways, all endless, all reproducible from (seed, name) and a short cursor:

- `Truncated`: documents in random order, joined and cut every `length` tokens. No padding; cuts
  fall where they fall ("random truncation": GLM-4.5 pre-training, arXiv:2508.06471, section 2.2).
- `BestFit`: documents stay whole where they fit, best-fit decreasing over a window; longer ones are
  cut into pieces. Little padding, few cuts (GLM-4.5 mid-training and after).
- `Padded`: one document a row.

A row is a list of spans. `fill` turns spans into ids, labels, segments and positions: a label is
the next token of the same document, so nothing is learnt across a border, while a cut inside a
document loses no label.
"""

import zlib
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from etude.data.tokens import TokenSet

IGNORED = -100
WINDOW_ROWS = 256  # best fit looks at about this many rows of tokens at once


class Span(NamedTuple):
    """Tokens `start` to `stop` of one document."""

    document: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Tokens in the span."""
        return self.stop - self.start


Row = list[Span]


class Stream(Protocol):
    """An endless sequence of rows over one set.

    Attributes:
        cursor: where the next row comes from; a few integers, and all there is to resume.
    """

    cursor: list[int]

    def next(self) -> Row:
        """Return the next row and move on."""
        ...

    def epochs(self) -> float:
        """Passes over the set so far."""
        ...


def order(seed: int, name: str, epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` documents in an epoch, which depends on nothing else."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), epoch]).permutation(count)


class _Epochs:
    """Shuffles the set anew for each epoch and remembers the last order."""

    def __init__(self, lengths: np.ndarray, length: int, seed: int, name: str) -> None:
        self.lengths, self.length, self.seed, self.name = lengths, length, seed, name
        self._epoch, self._order = -1, np.zeros(0, np.int64)
        self._ends = self._order

    def shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Document numbers in the order of this epoch, and where each ends in the joined stream."""
        if epoch != self._epoch:
            self._order = order(self.seed, self.name, epoch, len(self.lengths))
            self._ends = np.cumsum(self.lengths[self._order])
            self._epoch = epoch
        return self._order, self._ends


class Truncated(_Epochs):
    """Documents joined and cut every `length` tokens; rows run on over the border of epochs."""

    def __init__(self, lengths: np.ndarray, length: int, seed: int, name: str) -> None:
        super().__init__(lengths, length, seed, name)
        self.total = int(lengths.sum())
        self.cursor = [0]  # rows so far

    def next(self) -> Row:
        """Return the next `length` tokens of the joined stream."""
        at, last = self.cursor[0] * self.length, (self.cursor[0] + 1) * self.length
        row: Row = []
        while at < last:
            epoch, inside = divmod(at, self.total)
            until = min(inside + last - at, self.total)
            row += _between(*self.shuffled(epoch), inside, until)
            at += until - inside
        self.cursor = [self.cursor[0] + 1]
        return row

    def epochs(self) -> float:
        """Passes over the set so far."""
        return self.cursor[0] * self.length / self.total


def _between(documents: np.ndarray, ends: np.ndarray, start: int, stop: int) -> Row:
    """Spans that cover `start` to `stop` of the joined stream."""
    row: Row = []
    at = int(np.searchsorted(ends, start, side="right"))
    begins = int(ends[at - 1]) if at else 0
    while begins < stop:
        finish = int(ends[at])
        row.append(Span(int(documents[at]), max(start - begins, 0), min(stop, finish) - begins))
        begins, at = finish, at + 1
    return row


class BestFit(_Epochs):
    """Documents kept whole where they fit, packed window by window."""

    def __init__(self, lengths: np.ndarray, length: int, seed: int, name: str) -> None:
        super().__init__(lengths, length, seed, name)
        self.window = WINDOW_ROWS * length
        self.windows = -(-int(lengths.sum()) // self.window)
        self.cursor = [0, 0, 0]  # epoch, window, row of the window
        self._planned, self._rows = (-1, -1), list[Row]()

    def next(self) -> Row:
        """Return the next row of the window, planning the next window when this one is used up."""
        epoch, window, at = self.cursor
        while at >= len(self._plan(epoch, window)):
            epoch, window = (epoch, window + 1) if window + 1 < self.windows else (epoch + 1, 0)
            at = 0
        self.cursor = [epoch, window, at + 1]
        return self._rows[at]

    def epochs(self) -> float:
        """Passes over the set so far."""
        epoch, window, at = self.cursor
        done = (window + at / max(len(self._plan(epoch, window)), 1)) / self.windows
        return epoch + done

    def _plan(self, epoch: int, window: int) -> list[Row]:
        """Rows of one window; a document belongs to the window in which it starts."""
        if self._planned != (epoch, window):
            documents, ends = self.shuffled(epoch)
            starts = ends - self.lengths[documents]
            first, last = np.searchsorted(
                starts, [window * self.window, (window + 1) * self.window]
            )
            chosen = documents[first:last]
            rows = best_fit(chosen.tolist(), self.lengths[chosen].tolist(), self.length)
            shuffle = np.random.default_rng([self.seed, epoch, window, len(rows)])
            self._rows = [rows[i] for i in shuffle.permutation(len(rows))]
            self._planned = (epoch, window)
        return self._rows


class Padded(_Epochs):
    """One document a row; documents longer than a row are left out (`dropped` of them)."""

    def __init__(self, lengths: np.ndarray, length: int, seed: int, name: str) -> None:
        self.fitting = np.flatnonzero(lengths <= length)
        self.dropped = len(lengths) - len(self.fitting)
        super().__init__(lengths[self.fitting], length, seed, name)
        self.cursor = [0]  # rows so far

    def next(self) -> Row:
        """Return the next document as a row."""
        epoch, at = divmod(self.cursor[0], len(self.fitting))
        document = int(self.fitting[self.shuffled(epoch)[0][at]])
        self.cursor = [self.cursor[0] + 1]
        return [Span(document, 0, int(self.lengths[self._order[at]]))]

    def epochs(self) -> float:
        """Passes over the set so far."""
        return self.cursor[0] / len(self.fitting)


PACKERS = {"truncate": Truncated, "best_fit": BestFit, "pad": Padded}


def best_fit(documents: Iterable[int], lengths: Iterable[int], length: int) -> list[Row]:
    """Pack documents into rows: longest first, each into the fullest row that takes it.

    Args:
        documents: their numbers, copied into the spans.
        lengths: tokens of each.
        length: tokens of a row. A longer document is first cut into pieces of `length` and a rest.

    Returns:
        Rows that together hold every token once.
    """
    pieces = [
        Span(document, start, min(start + length, size))
        for document, size in zip(documents, lengths, strict=True)
        for start in range(0, size, length)
    ]
    pieces.sort(key=lambda piece: -piece.size)  # stable: ties stay in the shuffled order
    rows: list[Row] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for piece in pieces:
        at = bisect_left(free, (piece.size, -1))
        if at == len(free):
            left, number = length, len(rows)
            rows.append([])
        else:
            left, number = free.pop(at)
        rows[number].append(piece)
        if left > piece.size:
            insort(free, (left - piece.size, number))
    return rows


def fill(
    tokens: TokenSet,
    row: Row,
    ids: np.ndarray,
    labels: np.ndarray,
    segments: np.ndarray,
    pos: np.ndarray,
) -> int:
    """Write the spans of a row into one row of a batch, in place.

    Args:
        tokens: the set that the spans speak of.
        row: spans, at most `T` tokens together.
        ids: int64 `[T]`, holding 0, as padding does.
        labels: int64 `[T]`, holding -100.
        segments: int64 `[T]`, holding 0.
        pos: int64 `[T]`, holding 0.

    Returns:
        Labels that count.
    """
    at = counted = 0
    for number, (document, start, stop) in enumerate(row, start=1):
        # one token more: the target of the last
        found, mask = tokens.read(document, start, stop + 1)
        end = at + stop - start
        ids[at:end] = found[: stop - start]
        targets = found[1:].astype(np.int64)
        if mask is not None:
            targets[~mask[1:]] = IGNORED
        labels[at : at + len(targets)] = targets
        counted += len(targets) if mask is None else int(mask[1:].sum())
        segments[at:end] = number
        pos[at:end] = np.arange(end - at)
        at = end
    return counted


def join(ids: np.ndarray, labels: np.ndarray, segments: np.ndarray, pos: np.ndarray) -> int:
    """Make one document of a filled row, in place: positions run on, and nothing is masked.

    As GPT-3 packs (arXiv:2005.14165, appendix B): the end-of-text token between documents alone
    tells them apart; what stands behind it is learnt as its continuation.

    Args:
        ids, labels, segments, pos: one row `[T]` of a batch, as `fill` has left it.

    Returns:
        Labels that count beside those that did.
    """
    size = int(np.count_nonzero(segments))
    ends = np.flatnonzero(segments[: size - 1] != segments[1:size])
    more = int((labels[ends] == IGNORED).sum())
    labels[ends] = ids[ends + 1]
    segments[:size] = 1
    pos[:size] = np.arange(size)
    return more
