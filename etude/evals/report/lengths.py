"""How well each stage reads at each distance from the beginning of a long text."""

import math

from etude.evals.report import charts
from etude.evals.report.html import Html, tag, wide_table
from etude.evals.report.record import Run


def section(run: Run) -> Html | None:
    """Bits per byte by place: one line a stage, and the figures below."""
    found: dict[str, dict[str, list[charts.Point]]] = {}
    for result in run.evals:
        for row in result["rows"]:
            if row["column"] == "length" and row["value"] is not None:
                lines = found.setdefault(row["task"], {})
                place = (float(row["level"]), float(row["value"]))
                lines.setdefault(result["stage"], []).append(place)
    if not found:
        return None
    cards, tables = [], []
    for task, lines in found.items():
        drawn = {name: [(math.log2(x), y) for x, y in points] for name, points in lines.items()}
        name, ends = f"{task}: bits per byte against log2 of the place", ("near", "far")
        cards.append(charts.fan(name, drawn, told=_place, ends=ends, unit=" bits"))
        edges = [x for x, _ in next(iter(lines.values()))]
        head = tag("tr", [tag("th", t, scope="col") for t in (task, *map(_edge, edges))])
        body = [
            tag("tr", tag("th", name, scope="row"), [tag("td", f"{y:.3f}") for _, y in points])
            for name, points in lines.items()
        ]
        tables.append(wide_table(head, body, "plain"))
    text = (
        "Each text is read in one piece; a column holds its tokens from the place of the column "
        "before up to its own. Lower is better; compare stages in one column, for each column "
        "holds other tokens."
    )
    return tag("div", tag("div", cards, class_="grid"), tables, tag("p", text, class_="note"))


def _place(log: float) -> str:
    return _edge(2**log)


def _edge(place: float) -> str:
    return f"to {place:,.0f}"
