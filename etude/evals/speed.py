"""How fast a model writes behind a context, and what it keeps of that context.

What tells a hybrid from a model of attention alone: most of its layers keep a state of fixed size
(Nemotron 3, arXiv:2512.20856; MiniMax-M1, arXiv:2506.13585).
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch

from etude.engine.generate import stream
from etude.evals.probes import Row, row
from etude.evals.stats import Estimate
from etude.nn.cache import Paged
from etude.nn.decoder import Decoder

STEPS = 16  # timed tokens behind a context


class Pace(NamedTuple):
    """What was measured behind one context.

    Attributes:
        read: seconds until its first token.
        step: median seconds of a token after that.
    """

    read: float
    step: float


def rows(model: Decoder, lengths: Iterable[int]) -> Iterator[Row]:
    """Yield the rows of the table: tokens per second of one row, and megabytes kept, by length.

    Args:
        model: the stage's weights.
        lengths: tokens of the contexts, random ids.
    """
    for length in lengths:
        ids = context(model.arch.vocab, length)
        tokens = stream(model, ids, max_tokens=STEPS + 2)
        found = timed(lambda: next(tokens), lambda: next(tokens))  # noqa: B023
        place = {"column": "speed", "task": "decode", "level": length, "mode": "-"}
        for metric, value in (("tok/s", 1 / found.step), ("MB kept", kept(model, length) / 1e6)):
            yield row(place, metric, Estimate(value, math.nan, math.nan, STEPS))


def context(vocab: int, length: int) -> list[int]:
    """Return the same random ids for every model of a vocabulary."""
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(0)).tolist()


def timed(read: Callable[[], object], step: Callable[[], object]) -> Pace:
    """Time one reading and the steps behind it, of which the first only warms up."""
    first, _, *later = (_seconds(work) for work in (read, step, *[step] * STEPS))
    return Pace(first, statistics.median(later))


def kept(model: Decoder, length: int) -> int:
    """Return the bytes that the mixers ask a float32 cache for, for one row."""
    size = 0
    for slot in chain.from_iterable(model.slots()):
        grows = isinstance(slot, Paged)
        kind = torch.float32 if grows or slot.dtype is None else slot.dtype
        size += math.prod(slot.shape) * kind.itemsize * (length if grows else 1)
    return size


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
