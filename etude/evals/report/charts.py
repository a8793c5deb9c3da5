"""Curves and heat maps as small pieces of HTML and SVG that stretch to any width."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from etude.evals.report.html import Html, tag

POINTS_MAX = 400
Point = tuple[float, float]


def thin(points: Sequence[Point], most: int = POINTS_MAX) -> list[Point]:
    """Keep at most `most` points: both ends, and of each stretch the lowest and the highest."""
    if len(points) <= most:
        return list(points)
    first, *inner, last = points
    stretches = (most - 2) // 2
    kept = {first, last}
    for n in range(stretches):
        part = inner[n * len(inner) // stretches : (n + 1) * len(inner) // stretches]
        kept |= {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return sorted(kept)


def smooth(points: Sequence[Point]) -> list[Point]:
    """The mean over a fortieth of all points to either side, as far as there are any."""
    sums = [0.0, *accumulate(y for _, y in points)]
    reach = max(1, len(points) // 40)
    bounds = [(max(0, n - reach), min(len(points), n + reach + 1)) for n in range(len(points))]
    return [
        (x, (sums[b] - sums[a]) / (b - a)) for (x, _), (a, b) in zip(points, bounds, strict=True)
    ]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two bounds."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in at most six letters or so."""
    size = abs(value)
    for limit, unit, letter in (
        (1e12, 1e12, "T"),
        (1e9, 1e9, "G"),
        (1e6, 1e6, "M"),
        (1e4, 1e3, "k"),
    ):
        if size >= limit:
            return f"{value / unit:.3g} {letter}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 1e-3 or not size else f"{value:.1e}".replace("e-0", "e-")


def curve(
    name: str,
    points: Sequence[Point],
    *,
    unit: str = "step",
    bands: Sequence[tuple[str, float]] = (),
    labels: Sequence[str] = (),
    note: str = "",
) -> Html:
    """A line with its axis; longer ones pale behind their smooth mean.

    Args:
        name: caption.
        points: places and values, finite, in order.
        unit: what the places count.
        bands: named levels drawn as dashed lines.
        labels: names of the places instead of their numbers.
        note: shown beside the name; the last value if empty.
    """
    shown = thin(points)
    around = [(shown[0][0], level) for _, level in bands]
    place, grid = frame([*shown, *around])
    left, right = shown[0][0], shown[-1][0]
    noisy = len(points) >= 40
    lines = [stroke([place(*p) for p in shown], "raw" if noisy else "line")]
    if noisy:
        lines.append(stroke([place(*p) for p in thin(smooth(points))], "line"))
    dots = [_dot(*place(*p)) for p in shown] if len(shown) <= 12 else []
    levels = [(label, level, place(left, level)[1]) for label, level in bands]
    data = [[digits(x), digits(y), *place(x, y)] for x, y in shown]
    figures = tag("span", note or short(points[-1][1]), class_="now")
    return tag(
        "figure",
        tag("figcaption", tag("span", name), figures),
        tag(
            "div",
            svg(
                [rule(at, "grid") for _, at in grid]
                + [rule(at, "band") for *_, at in levels]
                + lines
            ),
            dots,
            [tag("span", short(y), class_="y", style=f"top:{at}%") for y, at in grid],
            [_level(*level, crowded=_crowded(level[2], levels)) for level in levels],
            class_="plot",
            data_points=json.dumps(data, separators=(",", ":")),
            data_unit=unit,
            data_labels=json.dumps(list(labels)) if labels else None,
        ),
        tag("div", ends(left, right, unit, labels), class_="x"),
        class_="chart",
    )


def scatter(
    name: str,
    points: Sequence[Point],
    lines: Sequence[Sequence[Point]],
    *,
    labels: Sequence[str],
    note: str = "",
) -> Html:
    """Dots in decimal logarithms, with lines fitted through them; axes show the plain numbers.

    Args:
        name: caption.
        points: logarithms of places and values, in order.
        lines: of the same; the second and later ones are dashed.
        labels: what is said of each dot.
        note: shown beside the name.
    """
    every = [*points, *(point for line in lines for point in line)]
    place, grid = frame(every)
    shown = [
        stroke([place(*p) for p in line], "band" if n else "line") for n, line in enumerate(lines)
    ]
    data = [[n, 0, *place(*point)] for n, point in enumerate(points)]
    return tag(
        "figure",
        tag("figcaption", tag("span", name), tag("span", note, class_="now")),
        tag(
            "div",
            svg([rule(at, "grid") for _, at in grid] + shown),
            [_dot(*place(*point)) for point in points],
            [tag("span", short(10**y), class_="y", style=f"top:{at}%") for y, at in grid],
            class_="plot",
            data_points=json.dumps(data, separators=(",", ":")),
            data_unit="",
            data_labels=json.dumps(list(labels)),
        ),
        tag("div", [tag("span", short(10**x)) for x in (points[0][0], points[-1][0])], class_="x"),
        class_="chart",
    )


def fan(
    name: str,
    lines: Mapping[str, Sequence[Point]],
    *,
    told: Callable[[float], str],
    ends: tuple[str, str],
    unit: str = " %",
) -> Html:
    """One line a stage over the same places, the first pale; the note tells first and last tops.

    Args:
        name: caption.
        lines: points by name of the stage, in order.
        told: what a place is called.
        ends: words below the first and the last place.
        unit: of the values, behind the note.
    """
    place, grid = frame([point for line in lines.values() for point in line])
    shown, data, labels = [], [], []
    for n, (stage, points) in enumerate(lines.items(), start=1):
        strength = f"{0.2 + 0.8 * n / len(lines):.2f}"
        path = "M" + "L".join("{:g} {:g}".format(*place(*p)) for p in points)
        shown.append(tag("path", d=path, class_="line", stroke_opacity=strength))
        for x, y in points:
            data.append([len(labels), digits(y), *place(x, y)])
            labels.append(f"{stage}, {told(x)}:")
    outer = [*lines][:: max(1, len(lines) - 1)]  # the first and the last
    tops = " → ".join(f"{max(y for _, y in lines[stage]):.0f}" for stage in outer)
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("span", name),
            tag("span", f"{tops}{unit}", class_="now"),
        ),
        tag(
            "div",
            svg([rule(at, "grid") for _, at in grid] + shown),
            [tag("span", short(y), class_="y", style=f"top:{at}%") for y, at in grid],
            class_="plot",
            data_points=json.dumps(data, separators=(",", ":")),
            data_unit="",
            data_labels=json.dumps(labels),
        ),
        tag("div", [tag("span", end) for end in ends], class_="x"),
        class_="chart",
    )


def frame(
    points: Sequence[Point],
) -> tuple[Callable[[float, float], Point], list[tuple[float, float]]]:
    """Return what places a point on a plot around all of them, and the rules across it."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> Point:
        across = 50.0 if right == left else 100 * (x - left) / (right - left)
        return round(across, 2), round(100 * (high - y) / (high - low), 2)

    return place, [(y, place(left, y)[1]) for y in ticks(low, high)]


def heat(rows: Sequence[Sequence[float]], *, name: str, row: str, column: str) -> Html:
    """Values beside their row's mean: pale at the mean, one colour above and one below."""
    wide = max(map(len, rows))
    cells = []
    for n, values in enumerate(rows):
        mean = sum(values) / len(values) or 1.0
        for m, value in enumerate(values):
            ratio = value / mean
            about = tag("title", f"{row} {n}, {column} {m}: {ratio:.2f} times the mean")
            strength = min(abs(ratio - 1), 1.0)
            kind = "over" if ratio > 1 else "under"
            box = {"x": m + 0.04, "y": n + 0.04, "width": 0.92, "height": 0.92, "rx": 0.12}
            shade = f"{0.06 + 0.94 * strength:.2f}"
            cells.append(tag("g", about, tag("rect", **box, class_=kind, fill_opacity=shade)))
    peak = max(max(r) / (sum(r) / len(r) or 1.0) for r in rows)
    return tag(
        "figure",
        tag("figcaption", tag("span", name), tag("span", f"{peak:.2f}× at most", class_="now")),
        tag(
            "svg",
            cells,
            viewBox=f"0 0 {wide} {len(rows)}",
            class_="heat",
            role="img",
            aria_label=name,
        ),
        tag(
            "div",
            tag("span", f"{len(rows)} {row}s down"),
            tag("span", f"{wide} {column}s across"),
            class_="x",
        ),
        class_="chart",
    )


def ends(left: float, right: float, unit: str, labels: Sequence[str]) -> list[Html]:
    """The first and the last place, for below a plot."""
    first, last = (labels[0], labels[-1]) if labels else (short(left), f"{unit} {short(right)}")
    return [tag("span", first), tag("span", last)] if right > left else [tag("span", last)]


def svg(children: list[Html]) -> Html:
    """Lines over a whole plot, stretched to it."""
    return tag(
        "svg", children, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true"
    )


def stroke(points: Sequence[Point], kind: str) -> Html:
    """A line through places of the plot."""
    return tag("path", d="M" + "L".join(f"{x:g} {y:g}" for x, y in points), class_=kind)


def rule(at: float, kind: str) -> Html:
    """A line across the plot."""
    return tag("path", d=f"M0 {at:g}H100", class_=kind)


def _level(name: str, value: float, at: float, *, crowded: bool) -> Html:
    kind = "level below" if crowded else "level"
    return tag("span", f"{name} {short(value)}", class_=kind, style=f"top:{at:g}%")


def _crowded(at: float, levels: Sequence[tuple[str, float, float]]) -> bool:
    """Whether another level is so close above that its name would stand on this one's."""
    return any(0 < at - other < 14 for *_, other in levels)


def _dot(x: float, y: float) -> Html:
    return tag("i", class_="dot", style=f"left:{x:g}%;top:{y:g}%")


def digits(value: float) -> float:
    """Five of them are plenty."""
    return float(f"{value:.5g}")
