"""The race in numbers: interquartile means over tasks and seeds, with bootstrap intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from etude.bench.race_arm import Result
from etude.bench.race_fork import BINS, Received, over_rounds
from etude.evals.stats import Estimate, iqm_interval, mean, t_interval

Found = Mapping[tuple[str, int], Sequence[Result]]
Words = Mapping[str, Sequence[Result]]
RIVAL = "dapo"  # whose last accuracy others are timed to: MiniMax-M1 says CISPO needs half


def curve(results: Sequence[Result]) -> list[tuple[float, Estimate]]:
    """Return accuracy on the reported questions against sampled tokens, over tasks and seeds."""
    found = []
    for points in zip(*(result.points for result in results), strict=True):
        tasks = [[point.test[task] for point in points] for task in points[0].test]
        found.append((mean([point.tokens for point in points]), iqm_interval(tasks)))
    return found


def whole(results: Sequence[Result]) -> Estimate:
    """Estimate the mean over all measurements behind the start: how fast, and how far."""
    tasks = list(results[0].points[0].test)
    scores = [
        [mean([point.test[task] for point in result.points[1:]]) for result in results]
        for task in tasks
    ]
    return iqm_interval(scores)


def reached(line: Sequence[tuple[float, Estimate]], accuracy: float) -> float | None:
    """Return the sampled tokens at which a curve first is at `accuracy`; None = nowhere.

    Straight lines are drawn between measurements.
    """
    before = line[0]
    for tokens, found in line:
        if found.value >= accuracy:
            rise = found.value - before[1].value
            part = (accuracy - before[1].value) / rise if rise > 0 else 0.0
            return before[0] + max(part, 0.0) * (tokens - before[0])
        before = tokens, found
    return None


def race_table(found: Found) -> str:
    """Return a line per objective and number of updates."""
    head = (
        f"{'updates':>7} {'objective':10}{'rate':>7}  {'start':>5}{'end':>22}"
        f"{'mean over the run':>22}{f'to {RIVAL} end':>14}{'clipped':>9}{'entropy':>9}  fields"
    )
    lines = [head]
    for (objective, updates), results in found.items():
        line, arm = curve(results), results[0].arm
        aim = curve(found[RIVAL, updates])[-1][1].value
        at = reached(line, aim)
        needs = "never" if at is None else f"{at / 1e3:,.0f}k"
        clipped = mean([mean(result.clipped) for result in results])
        entropy = mean([result.entropy[-1] for result in results])
        lines.append(
            f"{updates:7} {objective:10}{arm.rate:7g}  {line[0][1].value:5.3f}"
            f"{_cell(line[-1][1]):>22}{_cell(whole(results)):>22}"
            f"{needs:>14}{_share(clipped):>9}{entropy:9.3f}"
            f"  {arm.fields}"
        )
    return "\n".join(lines)


def fork_table(words: Words) -> str:
    """Return a line per objective: what of the gradient it leaves, by kind of token.

    How often `wait` is written, and how probable it then was, are those of the first and of the
    last third of the rounds; the rest is of all rounds, without their first updates.
    """
    head = "".join(f"{f'p <= {end:g}':>10}" for end in BINS)
    lines = [
        f"{'objective':10}{'start':>7}{'end':>22}{'wait per 1k':>14}{'p(wait)':>16}"
        f"{'wait left':>11}{'all left':>10}{'wait dropped':>14}{head}   (dropped, advantage > 0)"
    ]
    return "\n".join([*lines, *(_fork_line(name, results) for name, results in words.items())])


def _fork_line(objective: str, results: Sequence[Result]) -> str:
    rows = [row for result in results for row in result.received]
    rounds = 1 + max(row.round for row in rows)
    first = [row for row in rows if row.round < rounds / 3]
    last = [row for row in rows if row.round >= rounds * 2 / 3]
    start, end = (
        t_interval([mean(list(result.points[at].test.values())) for result in results])
        for at in (0, -1)
    )
    often, likely = [], []
    for part in (first, last):
        waits = over_rounds(part, "wait")
        often.append(f"{1000 * waits.sampled / max(over_rounds(part, 'all').sampled, 1):.1f}")
        likely.append(f"{waits.probability:.3f}" if waits.sampled else "-")
    waits, whole = over_rounds(rows, "wait"), over_rounds(rows, "all")
    dropped = "".join(f"{_dropped(over_rounds(rows, f'<= {end:g}')):>10}" for end in BINS)
    return (
        f"{objective:10}{start.value:7.3f}{_cell(end):>22}{' → '.join(often):>14}"
        f"{' → '.join(likely):>16}{_left(waits):>11}{_left(whole):>10}{_dropped(waits):>14}"
        f"{dropped}"
    )


def often(result: Result, at: int) -> float:
    """Return how often the word was written, per 1,000 sampled tokens of the round at `at`."""
    rounds = sorted({row.round for row in result.received})
    own = {row.kind: row for row in result.received if row.round == rounds[at]}
    waits = own["wait"].sampled if "wait" in own else 0
    return 1000 * waits / max(own["all"].sampled, 1)


def summary(found: Found, words: Words) -> dict[str, Any]:
    """Return all that the tables and pictures are made of, as JSON."""
    return {
        "race": [
            {
                "objective": objective,
                "updates": updates,
                "rate": results[0].arm.rate,
                "fields": results[0].arm.fields,
                "curve": [[tokens, *_plain(one)] for tokens, one in curve(results)],
                "whole": _plain(whole(results)),
                "seconds": [result.seconds for result in results],
            }
            for (objective, updates), results in found.items()
        ],
        "fork": [
            {
                "objective": objective,
                "accuracy": [[mean([*p.test.values()]) for p in one.points] for one in results],
                "received": [[asdict(row) for row in one.received] for one in results],
            }
            for objective, results in words.items()
        ],
    }


def _plain(one: Estimate) -> list[float | None]:
    return [None if value != value else value for value in (one.value, one.low, one.high)]


def _cell(one: Estimate) -> str:
    bounds = f" [{one.low:.3f} {one.high:.3f}]" if one.low == one.low else ""
    return f"{one.value:.3f}{bounds}"


def _left(one: Received) -> str:
    return f"{one.left / one.whole:.2f}" if one.whole else "-"


def _dropped(one: Received) -> str:
    return _share(one.silenced / one.trained if one.trained else math.nan)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
