"""Loss against compute over several sizes: a power law, and how sure its exponent is.

GPT-3 (arXiv:2005.14165, figure 3.1): L = 2.57 C^-0.048 with C in PF-days, fitted without a floor;
with one, L = L_inf + a C^-b. C = 6 N D counts forward and backward of every parameter on every
token, and no attention, as in its table D.1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from etude.evals.stats import mean, quantile, t_interval

STEPS = 400  # floors tried between 0 and the lowest loss
FEWEST = 3  # points for a fit


@dataclass(frozen=True, slots=True)
class Rung:
    """One trained size.

    Attributes:
        stage: its name.
        parameters: all of them.
        tokens: trained on.
        compute: FLOPs, 6 N D.
        loss: nats per token of held-out documents.
    """

    stage: str
    parameters: int
    tokens: int
    compute: float
    loss: float


@dataclass(frozen=True, slots=True)
class Law:
    """L = floor + scale C^-exponent, C in FLOPs.

    Attributes:
        exponent: b, with its 95% interval `low` to `high` (NaN where there are too few points).
        scale: a.
        floor: L_inf; 0 where the law has none.
        fit: R^2 of log(L - floor) against log C.
    """

    exponent: float
    low: float
    high: float
    scale: float
    floor: float
    fit: float

    def loss(self, compute: float) -> float:
        """Return the loss that the law gives for so many FLOPs."""
        return self.floor + self.scale * compute**-self.exponent


def rung(
    rows: Sequence[Mapping[str, Any]], parameters: int, tokens: int, compute: float
) -> dict[str, float]:
    """Return what a measured stage adds to the ladder, from its rows of bits per byte.

    Args:
        rows: of the stage; those of clean documents alone do not count twice.
        parameters, tokens, compute: see `Rung`.
    """
    read = [row for row in rows if row["metric"] == "bpb" and row["value"] is not None]
    nats = sum(row["value"] * row["bytes"] for row in read) * math.log(2)
    labels = sum(row["tokens"] for row in read)
    loss = nats / labels if labels else math.nan
    return {"parameters": parameters, "tokens": tokens, "compute": compute, "loss": loss}


def rungs(results: Sequence[Mapping[str, Any]]) -> list[Rung]:
    """Return the sizes among what `harness.evaluate` gave, the least compute first."""
    found = [Rung(r["stage"], **r["ladder"]) for r in results if r.get("ladder")]
    return sorted((r for r in found if r.loss == r.loss), key=lambda r: r.compute)


def power_law(points: Sequence[Rung]) -> Law | None:
    """Fit L = a C^-b by least squares of log L on log C; Student's interval of the slope.

    Returns:
        The law; None of fewer than three points, or of points at one compute.
    """
    return _line(points, 0.0)


def with_floor(points: Sequence[Rung]) -> Law | None:
    """Fit L = L_inf + a C^-b: the floor whose line has the smallest squared error of L.

    The interval is the jackknife's, since the floor and the exponent trade against each other.

    Returns:
        The law; None of fewer than four points.
    """
    if len(points) < FEWEST + 1:
        return None
    best = _floored(points)
    if best is None:
        return None
    left_out = [_floored([*points[:n], *points[n + 1 :]]) for n in range(len(points))]
    others = [law.exponent for law in left_out if law is not None]
    n = len(others)
    if n < FEWEST:
        return best
    centre = mean(others)
    spread = math.sqrt((n - 1) / n * math.fsum((b - centre) ** 2 for b in others))
    half = quantile(n) * spread
    law = (best.exponent, best.exponent - half, best.exponent + half)
    return Law(*law, best.scale, best.floor, best.fit)


def _floored(points: Sequence[Rung]) -> Law | None:
    lowest = min(point.loss for point in points)
    tried = (_line(points, lowest * step / STEPS) for step in range(STEPS))
    laws = [law for law in tried if law is not None]

    def error(law: Law) -> float:
        return math.fsum((law.loss(point.compute) - point.loss) ** 2 for point in points)

    return min(laws, key=error, default=None)


def _line(points: Sequence[Rung], floor: float) -> Law | None:
    """Fit log(L - floor) = log a - b log C."""
    n = len(points)
    if n < FEWEST or any(point.loss <= floor for point in points):
        return None
    xs = [math.log(point.compute) for point in points]
    ys = [math.log(point.loss - floor) for point in points]
    mx, my = mean(xs), mean(ys)
    across = math.fsum((x - mx) ** 2 for x in xs)
    if not across:
        return None
    slope = math.fsum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / across
    rest = math.fsum((y - my - slope * (x - mx)) ** 2 for x, y in zip(xs, ys, strict=True))
    whole = math.fsum((y - my) ** 2 for y in ys)
    # n - 2 degrees of freedom: `quantile` takes one more than they are
    half = quantile(n - 1) * math.sqrt(rest / (n - 2) / across)
    fit = 1 - rest / whole if whole else 1.0
    return Law(-slope, -slope - half, -slope + half, math.exp(my - slope * mx), floor, fit)


def summary(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return the ladders of several seeds as plain data; None where no stage was measured for one.

    Args:
        runs: of each, what `harness.evaluate` gave.
    """
    ladders = [found for found in map(rungs, runs) if found]
    if not ladders:
        return None
    laws = [law for points in ladders for law in [power_law(points)] if law]
    over = t_interval([law.exponent for law in laws])
    spread = [over.value, over.low, over.high] if len(laws) > 1 else None
    every = [
        {"rungs": [asdict(rung) for rung in points], "laws": told(points)[1 + len(points) :]}
        for points in ladders
    ]
    return {"runs": every, "exponent": spread}


def told(points: Sequence[Rung]) -> list[str]:
    """Return the ladder as lines of text: a head, a line a size, then the laws."""
    lines = [
        f"{'ladder':16s} {'parameters':>10s} {'tokens':>12s} {'FLOPs':>8s} {'nats/token':>10s}"
    ]
    for p in points:
        numbers = f"{p.parameters:10,d} {p.tokens:12,d} {p.compute:8.1e} {p.loss:10.3f}"
        lines.append(f"{p.stage:16s} {numbers}")
    return lines + [written(name, law) for name, law in laws(points).items()]


def render(found: Mapping[str, Any]) -> str:
    """Return what `summary` gave as text: the first seed's ladder, and the exponent over seeds."""
    lines = told([Rung(**one) for one in found["runs"][0]["rungs"]])
    if found["exponent"]:
        value, low, high = found["exponent"]
        seeds = len(found["runs"])
        lines.append(f"exponent over {seeds} seeds: {value:.3f} (95% {low:.3f} to {high:.3f})")
    return "\n".join(lines)


def laws(points: Sequence[Rung]) -> dict[str, Law]:
    """Return the laws that the points allow, by what to call them."""
    found = {"no floor": power_law(points), "with a floor": with_floor(points)}
    return {name: law for name, law in found.items() if law is not None}


def written(name: str, law: Law) -> str:
    """Return a law on one line."""
    floor = f"{law.floor:.2f} + " if name == "with a floor" else ""
    within = "" if law.low != law.low else f" (95% {law.low:.3f} to {law.high:.3f})"
    power = f"{law.scale:.3g} C^-{law.exponent:.3f}{within}"
    return f"{name}: L = {floor}{power}, C in FLOPs, R^2 {law.fit:.3f}"
