"""Several values in one plot: lines side by side, or shares that stand on each other."""

import json
from collections.abc import Mapping, Sequence

from etude.evals.report import charts
from etude.evals.report.charts import Point
from etude.evals.report.html import Html, tag

COLOURS = 6  # the style sheet has so many; further lines begin again
POINTS_MAX = 200  # of one line


def several(name: str, series: Mapping[str, Sequence[Point]], *, unit: str = "step") -> Html:
    """Lines over the same places; of long ones only the smooth mean is drawn.

    Args:
        name: caption.
        series: points by what they are, in order; none is empty.
        unit: what the places count.
    """
    noisy = any(len(points) >= 40 for points in series.values())
    shown = {
        key: charts.thin(charts.smooth(points) if noisy else points, POINTS_MAX)
        for key, points in series.items()
    }
    place, grid = charts.frame([point for points in shown.values() for point in points])
    lines = [
        charts.stroke([place(*point) for point in points], f"line s{n % COLOURS}")
        for n, points in enumerate(shown.values())
    ]
    data = [
        [charts.digits(x), charts.digits(y), *place(x, y), n]
        for n, points in enumerate(shown.values())
        for x, y in points
    ]
    return _figure(name, lines, data, list(shown), grid=grid, unit=unit)


def stack(name: str, series: Mapping[str, Sequence[Point]], *, unit: str = "step") -> Html:
    """Areas on each other, from 0; a value that is missing at a place counts as 0 there.

    Args:
        name: caption.
        series: points by what they are, the lowest first; values are not negative.
        unit: what the places count.
    """
    places = sorted({x for points in series.values() for x, _ in points})
    if len(places) > POINTS_MAX:
        places = places[:: -(-len(places) // POINTS_MAX)]
    heights = [dict(points) for points in series.values()]
    below = [0.0] * len(places)
    borders = [below]
    for values in heights:
        below = [low + values.get(x, 0.0) for x, low in zip(places, below, strict=True)]
        borders.append(below)
    corners = [(x, y) for ys in (borders[0], borders[-1]) for x, y in zip(places, ys, strict=True)]
    place, grid = charts.frame(corners)
    areas, data = [], []
    for n, values in enumerate(heights):
        low, high = (
            [place(x, y) for x, y in zip(places, borders[n + m], strict=True)] for m in (0, 1)
        )
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in [*high, *reversed(low)]) + "Z"
        areas.append(tag("path", d=path, class_=f"area s{n % COLOURS}"))
        tops = zip(places, high, strict=True)
        data += [[charts.digits(x), charts.digits(values.get(x, 0.0)), *at, n] for x, at in tops]
    return _figure(name, areas, data, list(series), grid=grid, unit=unit)


def _figure(
    name: str,
    drawn: list[Html],
    data: list[list[float]],
    keys: list[str],
    *,
    grid: list[tuple[float, float]],
    unit: str,
) -> Html:
    left, right = min(row[0] for row in data), max(row[0] for row in data)
    last = [f"{charts.short(row[1])}" for n in range(len(keys)) for row in _of(data, n)[-1:]]
    told = [
        tag("span", tag("i", class_=f"s{n % COLOURS}"), key, tag("b", last[n]))
        for n, key in enumerate(keys)
    ]
    return tag(
        "figure",
        tag("figcaption", tag("span", name)),
        tag(
            "div",
            charts.svg([charts.rule(at, "grid") for _, at in grid] + drawn),
            [tag("span", charts.short(y), class_="y", style=f"top:{at}%") for y, at in grid],
            class_="plot",
            data_points=json.dumps(data, separators=(",", ":")),
            data_unit=unit,
            data_names=json.dumps(keys),
        ),
        tag("div", charts.ends(left, right, unit, ()), class_="x"),
        tag("div", told, class_="keys"),
        class_="chart",
    )


def _of(data: list[list[float]], n: int) -> list[list[float]]:
    return [row for row in data if row[4] == n]
