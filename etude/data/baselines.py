"""What a language model must beat: a byte n-gram model and two compressors, in bits per byte.

The n-gram model is interpolated Kneser-Ney with one absolute discount per order (Kneser and Ney
1995; Chen and Goodman 1999, section 2.7), over bytes, so that it has no unknown words.
"""

import gzip
import lzma
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from etude.errors import EtudeError

MAX_ORDER = 8  # bytes that fit a 64-bit key


@dataclass(frozen=True, slots=True)
class _Order:
    """Counts of one n-gram length, sorted by key."""

    grams: np.ndarray  # [n] packed n-grams
    counts: np.ndarray  # [n]
    contexts: np.ndarray  # [m] packed (n-1)-grams
    totals: np.ndarray  # [m] sum of counts
    kinds: np.ndarray  # [m] distinct next bytes
    discount: float


class NGram:
    """An interpolated Kneser-Ney model of bytes."""

    def __init__(self, orders: list[_Order]) -> None:
        """Use `NGram.train`."""
        self._orders = orders

    @classmethod
    def train(cls, texts: Iterable[str], order: int = 5) -> "NGram":
        """Count all n-grams of up to `order` bytes.

        Raises:
            EtudeError: no text, or an order that does not fit.
        """
        if not 1 <= order <= MAX_ORDER:
            raise EtudeError("order", str(order), f"1 to {MAX_ORDER}")
        grams = _windows(texts, order)
        if not grams.size:
            raise EtudeError("n-gram model", "no text to train on")
        keys, counts = np.unique(grams, return_counts=True)
        orders = [_order(keys, counts)]
        for size in range(order - 1, 0, -1):
            # Kneser-Ney: a shorter n-gram counts once for each different byte seen before it
            mask = np.uint64((1 << (8 * size)) - 1)
            keys, counts = np.unique(keys & mask, return_counts=True)
            orders.append(_order(keys, counts))
        return cls(orders[::-1])

    def bits(self, texts: Iterable[str]) -> float:
        """Return the information of texts under the model, in bits."""
        return float(-np.log2(self._probability(_windows(texts, len(self._orders)))).sum())

    def _probability(self, grams: np.ndarray) -> np.ndarray:
        """Probability of the last byte of each n-gram, from the shortest context to the longest."""
        probability = np.full(grams.shape, 1 / 256)
        for size, order in enumerate(self._orders, start=1):
            mask = np.uint64((1 << (8 * size)) - 1)
            probability = _interpolated(order, grams & mask, probability)
        return probability

    def bits_per_byte(self, texts: Iterable[str]) -> float:
        """Return the bits that one byte of UTF-8 costs on average.

        Raises:
            EtudeError: the texts are empty.
        """
        texts = list(texts)
        return self.bits(texts) / _size(texts)


def _windows(texts: Iterable[str], order: int) -> np.ndarray:
    """The n-gram that ends at each byte, first byte highest; zeros stand before a text."""
    rows = [np.frombuffer(bytes(order - 1) + text.encode(), np.uint8) for text in texts]
    found = []
    for row in rows:
        count = len(row) - order + 1
        key = np.zeros(max(count, 0), np.uint64)
        for i in range(order):
            key = (key << np.uint64(8)) | row[i : i + count].astype(np.uint64)
        found.append(key)
    return np.concatenate(found) if found else np.zeros(0, np.uint64)


def _order(keys: np.ndarray, counts: np.ndarray) -> _Order:
    contexts, first = np.unique(keys >> np.uint64(8), return_index=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    return _Order(
        grams=keys,
        counts=counts,
        contexts=contexts,
        totals=np.add.reduceat(counts, first),
        kinds=np.diff(np.append(first, len(keys))),
        discount=min(max(discount, 0.05), 0.95),  # never 0 or 1: unseen bytes keep a share
    )


def _interpolated(order: _Order, grams: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """(count - discount + discount * kinds * shorter) / total; `shorter` for unseen contexts."""
    context = grams >> np.uint64(8)
    at = np.minimum(np.searchsorted(order.contexts, context), len(order.contexts) - 1)
    known = order.contexts[at] == context
    total, kinds = order.totals[at], order.kinds[at]
    where = np.minimum(np.searchsorted(order.grams, grams), len(order.grams) - 1)
    count = np.where(order.grams[where] == grams, order.counts[where], 0)
    mixed = (np.maximum(count - order.discount, 0) + order.discount * kinds * shorter) / total
    return np.where(known, mixed, shorter)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9),
    "lzma": lambda data: lzma.compress(data, preset=6),
}


def compressed(kind: str, train: Iterable[str], texts: Iterable[str]) -> float:
    """Return bits per byte of texts for a compressor that has just read the training texts.

    It is the growth of the compressed file when the texts are appended. gzip looks back 32 kB only.

    Args:
        kind: "gzip" or "lzma".
        train: read before.
        texts: measured, joined.

    Raises:
        EtudeError: an unknown compressor, or empty texts.
    """
    if kind not in COMPRESSORS:
        raise EtudeError("compressor", repr(kind), " | ".join(COMPRESSORS))
    texts = list(texts)
    size = _size(texts)
    before, after = "\n".join(train).encode(), "\n".join(texts).encode()
    squeeze = COMPRESSORS[kind]
    return 8 * (len(squeeze(before + after)) - len(squeeze(before))) / size


def _size(texts: list[str]) -> int:
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise EtudeError("texts", "nothing to measure", "at least one byte")
    return size
