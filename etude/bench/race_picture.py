"""Pictures of the race: lines with their intervals, in panels side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from etude.bench.race_arm import Result
from etude.bench.race_fork import BINS, over_rounds
from etude.bench.race_table import Found, Words, curve, often
from etude.evals.report.charts import short, ticks
from etude.evals.stats import mean

COLORS = {  # by objective, the same in all pictures; apart also for those who see no red and green
    "ppo": "#7a7a7a",
    "grpo": "#3b6fb3",
    "dapo": "#2f9d8a",
    "gspo": "#8a5aa8",
    "cispo": "#c8552f",
}
WIDE, HIGH, LEFT, TOP, GAP, FOOT = 340, 230, 44, 52, 30, 40
NAN = math.nan
WINDOW = 4  # rounds whose words are taken together: they are rare
BIN_NAMES = [f"{end:g}" for end in BINS]
Spot = tuple[float, float, float, float]  # place, value, lower and upper end


@dataclass(slots=True)
class Panel:
    """One plot.

    Attributes:
        title: above it.
        across: what its places count.
        lines: spots by objective, in order of their places; an unknown end is NaN.
        labels: names of the places instead of their numbers.
    """

    title: str
    across: str
    lines: dict[str, list[Spot]] = field(default_factory=dict)
    labels: Sequence[str] = ()


def race_picture(found: Found) -> str:
    """Draw held-out accuracy against sampled tokens, a panel per number of updates."""
    panels: dict[int, Panel] = {}
    for (objective, updates), results in found.items():
        title = f"{updates} update{'s' if updates > 1 else ''} per set of rollouts"
        panel = panels.setdefault(updates, Panel(title, "sampled tokens"))
        line = curve(results)
        panel.lines[objective] = [(x, one.value, one.low, one.high) for x, one in line]
    title = "Held-out accuracy: interquartile mean, 95% bootstrap"
    return draw(title, [*panels.values()], same=True)


def fork_picture(words: Words) -> str:
    """Draw what clips drop, and of `wait` the gradient and how often it is written, by round."""
    bins = Panel(
        "Share of tokens dropped, advantage > 0", "up to this probability", labels=BIN_NAMES
    )
    left = Panel("Gradient that reaches `wait`, over |advantage|", "round")
    wrote = Panel("`wait` per 1,000 sampled tokens", "round")
    for objective, results in words.items():
        rows = [row for result in results for row in result.received]
        kinds = [over_rounds(rows, f"<= {end:g}") for end in BINS]
        shares = [one.silenced / one.trained if one.trained else 0.0 for one in kinds]
        bins.lines[objective] = [(n, y, NAN, NAN) for n, y in enumerate(shares)]
        rounds = range(min(len({row.round for row in one.received}) for one in results))
        left.lines[objective] = [
            (at + (WINDOW - 1) / 2, *_reached(results, at)) for at in rounds[::WINDOW]
        ]
        by_seed = [[often(one, at) for one in results] for at in rounds]
        wrote.lines[objective] = [
            (at, mean(seeds), min(seeds), max(seeds)) for at, seeds in enumerate(by_seed)
        ]
    title = "Rare words under 16 updates: what a clip drops, and what comes of it"
    return draw(title, [bins, left, wrote])


def _reached(results: Sequence[Result], at: int) -> tuple[float, float, float]:
    """Share of |advantage| that reaches the word in some rounds: all runs, the least, the most."""
    by_run = [
        over_rounds([row for row in one.received if at <= row.round < at + WINDOW], "wait")
        for one in results
    ]
    shares = [one.left / one.whole for one in by_run if one.whole]
    if not shares:
        return NAN, NAN, NAN
    whole = sum(one.left for one in by_run) / sum(one.whole for one in by_run)
    return whole, min(shares), max(shares)


def draw(title: str, panels: Sequence[Panel], *, same: bool = False) -> str:
    """Return panels side by side as SVG, with one legend; `same` gives them one scale of values."""
    width = LEFT + len(panels) * (WIDE + GAP) + (len(panels) - 1) * (LEFT - GAP)
    height = TOP + HIGH + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" fill="#333" font-weight="600">{escape(title)}</text>',
    ]
    names = dict.fromkeys(name for panel in panels for name in panel.lines)
    for n, name in enumerate(names):
        x = width - GAP - 62 * (len(names) - n)
        parts.append(
            f'<rect x="{x}" y="10" width="10" height="10" fill="{COLORS[name]}"/>'
            f'<text x="{x + 14}" y="19" fill="#333">{name}</text>'
        )
    for n, panel in enumerate(panels):
        parts += _panel(panel, LEFT + n * (WIDE + LEFT), panels if same else [panel])
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: float, scale: Sequence[Panel]) -> list[str]:
    xs = [x for line in panel.lines.values() for x, *_ in line]
    lines = [line for one in scale for line in one.lines.values()]
    ys = [y for line in lines for _, *rest in line for y in rest if not math.isnan(y)] or [0.0]
    first, last, low, high = min(xs), max(xs), min(ys), max(ys)
    pad = (high - low) * 0.06 or 0.5
    low, high = max(low - pad, 0.0) if low >= 0 else low - pad, high + pad

    def at(x: float, y: float) -> str:
        across = left + WIDE * (x - first) / ((last - first) or 1)
        return f"{across:.1f} {TOP + HIGH * (high - y) / (high - low):.1f}"

    parts = [f'<text x="{left}" y="{TOP - 10}" fill="#333">{escape(panel.title)}</text>']
    for y in ticks(low, high, 6):
        x0, place = at(first, y).split()
        parts.append(
            f'<line x1="{x0}" x2="{left + WIDE}" y1="{place}" y2="{place}" stroke="#e2e2e2"/>'
            f'<text x="{left - 6}" y="{float(place) + 4:.1f}" text-anchor="end" fill="#666">'
            f"{short(y)}</text>"
        )
    named = dict(enumerate(panel.labels)) or {x: short(x) for x in ticks(first, last)}
    for x, label in named.items():
        place = at(x, low).split()[0]
        parts.append(
            f'<text x="{place}" y="{TOP + HIGH + 16}" text-anchor="middle" fill="#666">'
            f"{escape(label)}</text>"
        )
    parts.append(
        f'<text x="{left + WIDE / 2}" y="{TOP + HIGH + 33}" text-anchor="middle" fill="#666">'
        f"{escape(panel.across)}</text>"
    )
    return parts + [text for name, line in panel.lines.items() for text in _line(name, line, at)]


def _line(name: str, line: Sequence[Spot], at: Callable[[float, float], str]) -> list[str]:
    color = COLORS[name]
    line = [spot for spot in line if not math.isnan(spot[1])]
    known = [spot for spot in line if not math.isnan(spot[2])]
    area = [at(x, high) for x, _, _, high in known] + [at(x, low) for x, _, low, _ in known[::-1]]
    band = f'<path d="M{" L".join(area)}Z" fill="{color}" opacity="0.13"/>' if known else ""
    path = " L".join(at(x, y) for x, y, *_ in line)
    dots = [at(x, y).split() for x, y, *_ in line] if len(line) <= 12 else []
    return [
        *([band] if band else []),
        f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>' if line else "",
        *(f'<circle cx="{x}" cy="{y}" r="2.6" fill="{color}"/>' for x, y in dots),
    ]
