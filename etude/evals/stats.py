"""Means with 95% intervals, over problems and over training seeds, and the unbiased pass@k.

Over seeds the interval is Student's t; over independent right-or-wrong answers it is Wilson's,
which stays inside [0, 1] and is honest at 0 and 1; over problems with several samples each it is
a normal interval of per-problem means, because samples of one problem are not independent.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959964  # 97.5% point of the normal distribution
T = (  # 97.5% points of Student's t with 1, 2, ... degrees of freedom
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its 95% interval, and how many values it rests on."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1); NaN below two values."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def t_interval(values: Sequence[float]) -> Estimate:
    """Estimate the mean over training seeds; one seed has no interval (NaN bounds)."""
    centre, n = mean(values), len(values)
    if n < 2:
        return Estimate(centre, math.nan, math.nan, n)
    half = quantile(n) * deviation(values) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def quantile(n: int) -> float:
    """Return the 97.5% point for a mean of `n` > 1 values whose spread is theirs too."""
    return T[n - 2] if n - 1 <= len(T) else Z


def reach(value: float, low: float, high: float) -> float:
    """Return how far the farther end of an interval lies from its value.

    Near 0 and 1 intervals are lopsided: none right of 40 goes up to 8.8 %, not to half of that.
    """
    return max(high - value, value - low)


def wilson(successes: float, n: int) -> Estimate:
    """Estimate a share from `n` independent right-or-wrong answers."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = successes / n
    scale = 1 + Z**2 / n
    centre = (share + Z**2 / (2 * n)) / scale
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / scale
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def over_items(values: Sequence[float]) -> Estimate:
    """Estimate a mean over problems, each value the mean of that problem's samples.

    Right-or-wrong values take Wilson's interval; others a normal one, cut to [0, 1].
    """
    if all(value in (0.0, 1.0) for value in values):
        return wilson(math.fsum(values), len(values))
    centre, n = mean(values), len(values)
    half = Z * deviation(values) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(centre, max(0.0, centre - half), min(1.0, centre + half), n)


def pass_at_k(right: int, n: int, k: int) -> float:
    """Return the unbiased chance that one of `k` samples is right, given `right` of `n` were.

    1 - C(n - right, k) / C(n, k) (Chen et al., arXiv:2107.03374, equation 1).

    Raises:
        ValueError: `k` exceeds `n`.
    """
    if k > n:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {n}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half; a value at its border counts by the part inside.

    Less moved by one odd run than the mean, less wasteful than the median (Agarwal et al.,
    arXiv:2108.13264, section 4.3).
    """
    n = len(values)
    if not n:
        return math.nan
    low, high = n / 4, n * 3 / 4
    inside = [max(0.0, min(place + 1, high) - max(place, low)) for place in range(n)]
    products = (part * value for part, value in zip(inside, sorted(values), strict=True))
    return math.fsum(products) / (high - low)


def iqm_interval(
    scores: Sequence[Sequence[float]], *, draws: int = 2000, seed: int = 0
) -> Estimate:
    """Estimate the interquartile mean over tasks and training seeds.

    The interval is a percentile bootstrap, stratified: runs are drawn again within each task
    (Agarwal et al., arXiv:2108.13264, section 4.1). It is too narrow where there are few runs:
    three values have ten different resamples.

    Args:
        scores: of each task, those of its runs.
        draws: resamples.
        seed: of them.
    """
    flat = [score for runs in scores for score in runs]
    centre, n = interquartile_mean(flat), len(flat)
    if min(map(len, scores), default=0) < 2:
        return Estimate(centre, math.nan, math.nan, n)
    rng = random.Random(seed)
    found = sorted(
        interquartile_mean([score for runs in scores for score in rng.choices(runs, k=len(runs))])
        for _ in range(draws)
    )
    low, high = (found[round(share * (draws - 1))] for share in (0.025, 0.975))
    return Estimate(centre, low, high, n)
