"""Reward rules of the reports as formulas over one attempt or one group of attempts.

Everything here is a plain number: tokens are counted, shares are between 0 and 1, and what a rule
adds to a reward is its return value. Who is judged by which rule is the business of `rl.rewards`.
"""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from math import exp


def overlong(tokens: int, *, most: int, cache: int) -> float:
    """Return 0 up to `most - cache` tokens, then a line down to -1 at `most`, and -1 beyond.

    Args:
        tokens: length of the answer.
        most: longest answer (DAPO: 20,480).
        cache: tokens before that over which the penalty grows (DAPO: 4,096).

    Source: DAPO, arXiv:2503.14476, section 3.4, equation 13; MiniMax-M1, arXiv:2506.13585.
    """
    return max(-1.0, min(0.0, (most - cache - tokens) / cache))


def repeated(ids: Sequence[int], n: int) -> float:
    """Return the share of runs of `n` tokens that occurred before; 0 for a shorter text."""
    runs = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def foreign(text: str, known: Collection[str]) -> float:
    """Return the share of letters whose script is not among `known`, as `scripts` names them."""
    found = [_script(letter) for letter in text if letter.isalpha()]
    return sum(script not in known for script in found) / len(found) if found else 0.0


def scripts(text: str) -> frozenset[str]:
    """Return the scripts of a text's letters, by Unicode's names: `LATIN`, `CYRILLIC`, `CJK`."""
    return frozenset(_script(letter) for letter in text if letter.isalpha())


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].partition("-")[0]


def relative_length(lengths: Sequence[int]) -> list[float]:
    """Return w_i - mean(w) with w_i = 1 - (n_i - min) / (max - min); zeros where all are equal.

    Source: Nemotron 3 Nano, arXiv:2512.20848, section 3, group relative length control.
    """
    low, high = min(lengths), max(lengths)
    if low == high:
        return [0.0] * len(lengths)
    own = [1 - (n - low) / (high - low) for n in lengths]
    middle = sum(own) / len(own)
    return [w - middle for w in own]


def shortest_bonus(base: Sequence[float], lengths: Sequence[int], *, quantile: float) -> list[int]:
    """Return 1 for the shortest attempt, if its base reward is among the group's best, else 0.

    Args:
        base: reward of each attempt before any length control.
        lengths: of the part whose shortness is paid for.
        quantile: its base reward must reach this quantile of the group's (Nemotron 3: 0.8).

    Source: Nemotron 3 Nano, arXiv:2512.20848, section 3, the conciseness bonus. Of several shortest
    attempts each that is good enough has it (the report does not say).
    """
    bound, low = percentile(base, quantile), min(lengths)
    gaps = len(set(lengths)) > 1
    return [int(gaps and n == low and r >= bound) for r, n in zip(base, lengths, strict=True)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of `values` lies, on a line between neighbours."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])


def toggle(
    rewards: Sequence[float],
    right: Sequence[bool],
    lengths: Sequence[int],
    *,
    least: float,
    budget: float,
) -> list[float]:
    """Keep a reward if the problem is not yet solved well, or the answer is within its budget.

    The rule of a budget phase; in a free phase rewards stay as they are.

    Args:
        rewards: of a group.
        right: which attempts are correct.
        lengths: of the answers.
        least: share of right answers from which on brevity is asked for (lambda of the report).
        budget: tokens.

    Source: Kimi K2.5, arXiv:2602.02276, Toggle.
    """
    free = sum(right) / len(right) < least
    kept = [free or n <= budget for n in lengths]
    return [reward if keep else 0.0 for reward, keep in zip(rewards, kept, strict=True)]


def swarm(parallel: float, finished: float, *, weights: tuple[float, float]) -> float:
    """Return l1 r_parallel + l2 r_finish, which is added to the reward of the outcome.

    Args:
        parallel: sub-agents that were launched over how many are wanted, at most 1.
        finished: share of the assigned sub-tasks that were completed.
        weights: l1 and l2 of this moment; both go to 0 over training.

    Source: Kimi K2.5, arXiv:2602.02276, PARL. The form of r_parallel is not published: our choice.
    """
    return weights[0] * min(1.0, parallel) + weights[1] * finished


def critical_steps(stages: Sequence[tuple[int, Sequence[int]]]) -> int:
    """Sum over stages of the main agent's steps and the longest of its sub-agents' branches.

    Source: Kimi K2.5, arXiv:2602.02276, critical steps.
    """
    return sum(main + max(branches, default=0) for main, branches in stages)


def circular(verdicts: Sequence[tuple[float, float, float]]) -> list[float]:
    """Return each answer's score from comparisons (1, 2), (2, 3), ..., (N, 1).

    Args:
        verdicts: scores of a pair's first and second answer, and the rank from 1 (the first is far
            better) to 6 (the second is). Where the two scores are equal the rank parts them.

    Returns:
        The mean of the two scores that each answer got.

    Source: Nemotron 3 Nano, arXiv:2512.20848, section 3.
    """
    n = len(verdicts)
    sums = [0.0] * n
    for at, (first, second, rank) in enumerate(verdicts):
        edge = 3.5 - rank if first == second else 0.0
        sums[at] += first + edge
        sums[(at + 1) % n] += second - edge
    return [total / 2 for total in sums]


def verdict_error(
    said: tuple[float, float, float] | None,
    truth: tuple[float, float, float],
    *,
    malformed: float = 10.0,
    rank: float = 1.0,
) -> float:
    """Return how far a written verdict is off; its negative rewards a judge in training.

    Args:
        said: the two scores and the rank; None where they could not be read.
        truth: those of people, or of a program.
        malformed: cost of a verdict that cannot be read (C1 of the report: 10).
        rank: weight of the rank's error (C2: 1).

    Source: Nemotron 3 Nano, arXiv:2512.20848, section 3.
    """
    if said is None:
        return malformed
    off = [abs(own - other) for own, other in zip(said, truth, strict=True)]
    return off[0] + off[1] + rank * off[2]


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return Pearson's correlation; 0 where one of them does not vary."""
    n = len(xs)
    if n < 2:
        return 0.0
    mx, my = sum(xs) / n, sum(ys) / n
    top = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    spread = sum((x - mx) ** 2 for x in xs) * sum((y - my) ** 2 for y in ys)
    return top / spread**0.5 if spread > 1e-18 else 0.0


def without_length(rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Return rewards less what a straight line through (length, reward) explains of them.

    The mean stays. It recalibrates a judge that has come to like long answers (MiniMax-M1,
    arXiv:2506.13585, section 4.2, which says that it recalibrates and not how: our choice).
    """
    n = len(rewards)
    mx = sum(lengths) / n
    spread = sum((x - mx) ** 2 for x in lengths)
    if not spread:
        return list(rewards)
    slope = sum((x - mx) * y for x, y in zip(lengths, rewards, strict=True)) / spread
    return [y - slope * (x - mx) for x, y in zip(lengths, rewards, strict=True)]


def gaussian(rates: Mapping[int, float], *, mean: float, width: float) -> dict[int, float]:
    """Return weights of levels by their pass rates, from a bell around `mean`.

    Levels that are always solved get none, unless no other is left.

    Source: Nemotron 3 Nano, arXiv:2512.20848, section 3 (the width is not published).
    """
    left = {level: rate for level, rate in rates.items() if rate < 1} or dict(rates)
    raw = {level: exp(-0.5 * ((rate - mean) / width) ** 2) for level, rate in left.items()}
    whole = sum(raw.values())
    if not whole:  # every rate is far off: the nearest
        nearest = min(left, key=lambda level: abs(left[level] - mean))
        return {nearest: 1.0}
    return {level: weight / whole for level, weight in raw.items()}
