"""Benchmark texts in training documents: found by shared runs of words, and cut out.

As in GPT-3 (arXiv:2005.14165, appendix C): words are lower-case, split at white space, without
punctuation. What a training document shares with a test goes, with a window of text around it.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from etude.data.documents import stable_hash

_PIECE = re.compile(r"\S+")
_MARKS = re.compile(r"[^\w]|_")


@dataclass(frozen=True, slots=True)
class Rule:
    """What counts as shared, and what is cut.

    Args:
        words: in a run that must not be shared (13).
        window: characters cut before and behind each run (200).
        shortest: characters of a piece that stays (200).
        pieces: most pieces a document may fall into; one of more is left out (10). Pieces count
            before the short ones go, which the paper leaves open.
        documents: most training documents that hold a run which still counts; a commoner one is a
            phrase, not a leak (10).
    """

    words: int = 13
    window: int = 200
    shortest: int = 200
    pieces: int = 10
    documents: int = 10


@dataclass(slots=True)
class Counts:
    """What was found, for the manifest.

    Attributes:
        tests: texts that were protected.
        runs: different runs of words shared with a test.
        common: of these, how many were in too many documents to count.
        touched: training documents that shared one that counts.
        dropped: of these, how many fell into too many pieces, or had none left.
        pieces: documents that the others became.
        cut_bytes: text that went, all in all.
    """

    tests: int = 0
    runs: int = 0
    common: int = 0
    touched: int = 0
    dropped: int = 0
    pieces: int = 0
    cut_bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return plain data."""
        return asdict(self)


class Run(NamedTuple):
    """One run of words: what it is, and from which character to which it stands."""

    key: int
    start: int
    stop: int


def runs(text: str, words: int) -> list[Run]:
    """Return every run of so many words; a text of fewer words has none."""
    found = []
    for piece in _PIECE.finditer(text):
        word = _MARKS.sub("", piece.group()).lower()
        if word:
            found.append((word, piece.start(), piece.end()))
    return [
        Run(
            stable_hash(*(word for word, *_ in found[i : i + words])),
            found[i][1],
            found[i + words - 1][2],
        )
        for i in range(len(found) - words + 1)
    ]


def decontaminate(
    texts: Sequence[str], tests: Iterable[str], rule: Rule | None = None
) -> tuple[list[list[str]], Counts]:
    """Cut out of training texts what they share with tests.

    Args:
        texts: training documents.
        tests: documents and questions that evaluation asks.
        rule: sizes; None takes the paper's.

    Returns:
        What is left of each text: itself alone where it shares nothing, the pieces around the cuts,
        or nothing; and the counts.
    """
    rule = rule or Rule()
    tests = list(tests)
    wanted = {run.key for test in tests for run in runs(test, rule.words)}
    shared = [[run for run in runs(text, rule.words) if run.key in wanted] for text in texts]
    seen = Counter(key for one in shared for key in {run.key for run in one})
    common = {key for key, times in seen.items() if times > rule.documents}
    counts = Counts(tests=len(tests), runs=len(seen), common=len(common))
    left = []
    for text, found in zip(texts, shared, strict=True):
        spans = [(run.start, run.stop) for run in found if run.key not in common]
        pieces = _around(text, spans, rule) if spans else [text]
        if spans:
            counts.touched += 1
            counts.dropped += not pieces
            counts.pieces += len(pieces)
            counts.cut_bytes += len(text.encode()) - sum(len(p.encode()) for p in pieces)
        left.append(pieces)
    return left, counts


def _around(text: str, spans: Sequence[tuple[int, int]], rule: Rule) -> list[str]:
    """Return what is left around the spans and their windows; nothing if it is in shreds."""
    pieces, at = [], 0
    for start, stop in spans:  # in order of their starts; windows of neighbours may overlap
        before = start - rule.window
        if before > at:
            pieces.append(text[at:before])
        at = max(at, stop + rule.window)
    if at < len(text):
        pieces.append(text[at:])
    if len(pieces) > rule.pieces:
        return []
    return [piece.strip() for piece in pieces if len(piece) >= rule.shortest]


def run_length(tests: Sequence[str], *, least: int = 8, most: int = 13) -> int:
    """Return the words of a run by which tests of a set count as seen: the 5th percentile.

    Args:
        tests: examples of one set.
        least, most: bounds of the paper; it lets synthetic sets fall to 2 (scrambled words).
    """
    lengths = sorted(len(_PIECE.findall(test)) for test in tests)
    place = max(0, math.ceil(0.05 * len(lengths)) - 1)
    return min(most, max(least, lengths[place] if lengths else most))


def seen_before(
    tests: Sequence[str], texts: Iterable[str], *, words: int | None = None
) -> list[bool]:
    """Return which tests share a run of words with any training text ("dirty" in the paper).

    Args:
        tests: examples of one set.
        texts: everything that was trained on, read once.
        words: in a run; None takes `run_length`.
    """
    words = words or run_length(tests)
    holders: dict[int, set[int]] = {}
    for number, test in enumerate(tests):
        for run in runs(test, words):
            holders.setdefault(run.key, set()).add(number)
    dirty: set[int] = set()
    for text in texts:
        for run in runs(text, words):
            dirty |= holders.get(run.key, set())
    return [number in dirty for number in range(len(tests))]
