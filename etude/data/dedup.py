"""Duplicates: equal after normalising, or near by MinHash over runs of five words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from etude.data.documents import stable_hash

if TYPE_CHECKING:
    from datasketch import MinHash

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Near:
    """When two texts count as near-duplicates.

    Args:
        threshold: Jaccard similarity of their runs of words.
        guard: the same towards a held-out text: siblings (`legval`, `chebval`) would give it away.
        permutations: length of a signature; the standard error is at most 0.5 / sqrt(it).
        run: words in a run.
        runs: most runs a signature is made from: those with the smallest hashes.
    """

    threshold: float = 0.7
    guard: float = 0.4
    permutations: int = 64
    run: int = 5
    runs: int = 600


def exact_key(text: str) -> int:
    """Return a key that is equal for texts with the same words, whatever case, space and marks."""
    return stable_hash(" ".join(_WORD.findall(text.lower())))


def exact_duplicates(texts: Sequence[str]) -> list[int | None]:
    """Return for each text the index of an earlier equal one, or None."""
    first: dict[int, int] = {}
    found: list[int | None] = []
    for index, text in enumerate(texts):
        earlier = first.setdefault(exact_key(text), index)
        found.append(None if earlier == index else earlier)
    return found


def near_duplicates(
    texts: Sequence[str],
    *,
    held: int = 0,
    rule: Near | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[int | None]:
    """Return for each text the index of an earlier kept one that it nearly repeats, or None.

    Candidates come from locality-sensitive hashing and are confirmed by the signatures' estimate of
    the Jaccard similarity. A text that was itself dropped never makes another one fall.

    Args:
        texts: in order of precedence.
        held: how many of the first texts are held out; later ones keep a greater distance to them.
        rule: thresholds and sizes.
        progress: called with (description, done, total).
    """
    from datasketch import MinHash

    rule = rule or Near()
    kept, guarded = _Index(rule, rule.threshold), _Index(rule, rule.guard)
    found: list[int | None] = []
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=rule.permutations, hashfunc=int)  # runs are hashed already
        signature.update_batch(_runs(text, rule))
        earlier = guarded.nearest(signature) if number >= held else None
        earlier = kept.nearest(signature) if earlier is None else earlier
        found.append(earlier)
        if earlier is None:
            kept.add(number, signature)
            if number < held:
                guarded.add(number, signature)
        if progress and number % 200 == 0:
            progress("near duplicates", number, len(texts))
    return found


class _Index:
    """Signatures that can be asked for those at least `threshold` alike."""

    def __init__(self, rule: Near, threshold: float) -> None:
        from datasketch import MinHashLSH

        self.threshold = threshold
        self.index = MinHashLSH(threshold=threshold, num_perm=rule.permutations)
        self.signatures: dict[int, MinHash] = {}

    def add(self, number: int, signature: "MinHash") -> None:
        self.index.insert(number, signature)
        self.signatures[number] = signature

    def nearest(self, signature: "MinHash") -> int | None:
        """Return the first text that is near enough, or None."""
        candidates = [k for k in self.index.query(signature) if isinstance(k, int)]
        alike = [k for k in candidates if self.signatures[k].jaccard(signature) >= self.threshold]
        return min(alike, default=None)


def _runs(text: str, rule: Near) -> np.ndarray:
    """Hash each run of words; of a long text keep the smallest, the same in its near-copies."""
    words = _WORD.findall(text.lower())
    last = max(len(words) - rule.run + 1, 1)
    hashes = {
        crc32(" ".join(words[i : i + rule.run]).encode("utf-8", "replace")) for i in range(last)
    }
    return np.sort(np.fromiter(hashes, dtype=np.uint32))[: rule.runs]
