"""What the machine can do at most: a matrix product, and reading memory."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SECONDS = 0.5  # spent on each measurement


class Limits(NamedTuple):
    """Peak rates with the threads that are set now.

    Attributes:
        flops: of a float32 product of two 1024 x 1024 matrices, per second.
        bytes: read per second by the sum of 256 MB.
    """

    flops: float
    bytes: float


def limits() -> Limits:
    """Measure both, the best of as many tries as fit in half a second each."""
    a = torch.randn(1024, 1024)
    flat = torch.ones(64 << 20)
    product, read = _best(lambda: a @ a), _best(flat.sum)
    return Limits(2 * 1024**3 / product, flat.numel() * 4 / read)


def _best(work: Callable[[], object]) -> float:
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - start)
    return best
