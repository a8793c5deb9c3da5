"""How fast each stage writes behind a context, and what it keeps of it."""

import math

from etude.evals.report import charts
from etude.evals.report.html import Html, tag, wide_table
from etude.evals.report.record import Run

DIGITS = {"tok/s": 0, "MB kept": 3}


def section(run: Run) -> Html | None:
    """Tokens per second by length: one line a stage, and the figures below."""
    found: dict[str, dict[str, list[charts.Point]]] = {}
    for result in run.evals:
        for row in result["rows"]:
            if row["column"] == "speed" and row["value"] is not None:
                lines = found.setdefault(row["metric"], {})
                point = (float(row["level"]), float(row["value"]))
                lines.setdefault(result["stage"], []).append(point)
    if not found:
        return None
    cards, tables = [], []
    for metric, lines in found.items():
        drawn = {name: [(math.log2(x), y) for x, y in points] for name, points in lines.items()}
        name, ends = f"{metric} against log2 of the context", ("short", "long")
        cards.append(charts.fan(name, drawn, told=_context, ends=ends, unit=f" {metric}"))
        lengths = [x for x, _ in next(iter(lines.values()))]
        head = tag("tr", [tag("th", t, scope="col") for t in (metric, *map(_length, lengths))])
        body = [
            tag("tr", tag("th", name, scope="row"), [tag("td", _said(metric, y)) for _, y in line])
            for name, line in lines.items()
        ]
        tables.append(wide_table(head, body, "plain"))
    text = (
        "One row, greedy, behind contexts of random tokens. Megabytes kept are what the mixers ask "
        "a float32 cache for: states of fixed size, and keys and values of each token."
    )
    return tag("div", tag("div", cards, class_="grid"), tables, tag("p", text, class_="note"))


def _context(log: float) -> str:
    return f"behind {_length(2**log)} tokens"


def _length(tokens: float) -> str:
    return f"{tokens:,.0f}"


def _said(metric: str, value: float) -> str:
    return f"{value:,.{DIGITS.get(metric, 1)}f}"
