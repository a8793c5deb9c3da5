"""What a run reached and what it cost: the table over stages, bits per byte, time."""

from collections.abc import Sequence
from typing import Any

from etude.evals.report import charts
from etude.evals.report.html import Html, tag, wide_table
from etude.evals.report.record import Line, Run
from etude.evals.stats import reach

COLUMNS = {
    "agentic": "Agentic",
    "reasoning": "Reasoning",
    "coding": "Coding",
    "language": "Language",
}
ASKED = ("greedy", "sampled", "pass")  # of these the page shows one at a time


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def table(run: Run) -> Html | None:
    """Every figure of every stage, grouped by the report's columns."""
    stages = [result["stage"] for result in run.evals]
    rows = _rows(run, [c for c in _columns(run) if c not in ("language", "length", "speed")])
    if not rows:
        return None
    head = ["", *stages, "change"]
    body: list[Html] = []
    before = ""
    for key, cells in rows.items():
        column = key[0]
        if column != before:
            title = tag("th", COLUMNS.get(column, column), scope="rowgroup")
            body.append(tag("tr", title, tag("td", colspan=len(head) - 1), class_="group"))
        body.append(_measure(key, [cells.get(stage) for stage in stages]))
        before = column
    return tag(
        "div",
        tag("div", class_="choose", data_names=" ".join(_asked(rows))),
        wide_table(tag("tr", [tag("th", text, scope="col") for text in head]), body),
        tag(
            "p",
            "Per cent of held-out problems; greedy, or the mean over samples at temperature 1. "
            "The small figure reaches the farther end of a 95 % interval. Bold: best of the row. "
            "Change: last stage against first.",
            class_="note",
        ),
    )


def _columns(run: Run) -> list[str]:
    found = dict.fromkeys(row["column"] for result in run.evals for row in result["rows"])
    return [c for c in COLUMNS if c in found] + [c for c in found if c not in COLUMNS]


def _rows(run: Run, columns: Sequence[str]) -> dict[tuple[str, ...], dict[str, Line]]:
    """Cells by stage, for each (column, task, mode, metric), in the order of columns."""
    rows: dict[tuple[str, ...], dict[str, Line]] = {}
    for result in run.evals:
        for row in result["rows"]:
            level = "" if row.get("level") is None else f" {row['level']}"
            limit = f", turns {row['turns']}" if "turns" in row else ""
            task = f"{row['task']}{level}{limit}"
            key = (row["column"], task, str(row.get("mode", "-")), row["metric"])
            rows.setdefault(key, {})[result["stage"]] = row
    return {key: rows[key] for column in columns for key in rows if key[0] == column}


def _asked(rows: dict[tuple[str, ...], Any]) -> list[str]:
    found = {_kind(key[3]) for key in rows}
    return [kind for kind in ASKED if kind in found]


def _kind(metric: str) -> str:
    return metric.split("@")[0]


def _measure(key: tuple[str, ...], cells: Sequence[Line | None]) -> Html:
    _, task, mode, metric = key
    values = [c["value"] if c else None for c in cells]
    known = [v for v in values if v is not None]
    best = max(known) if len(set(known)) > 1 else None
    label = [tag("b", task), tag("span", mode, class_=f"mode {mode}") if mode != "-" else None]
    kind = _kind(metric)
    return tag(
        "tr",
        tag("th", label, tag("small", metric), scope="row"),
        [_share(c, best=c is not None and c["value"] == best) for c in cells],
        _change(known[-1] - known[0] if len(known) > 1 else None),
        data_metric=kind if kind in ASKED else None,
    )


def _share(cell: Line | None, *, best: bool) -> Html:
    if cell is None or cell["value"] is None:
        return tag("td", "·", class_="none")
    value, far = cell["value"], _reach(cell)
    small = tag("small", f"±{100 * far:.1f}") if far is not None else None
    shade = f"--v:{min(max(value, 0.0), 1.0):.3f}"
    title = f"{cell['n']} items" if cell.get("n") else None
    kind = "heat best" if best else "heat"
    return tag(
        "td", tag("span", f"{100 * value:.1f}"), small, class_=kind, style=shade, title=title
    )


def _reach(cell: Line) -> float | None:
    low, high = cell.get("low"), cell.get("high")
    return None if low is None or high is None else reach(cell["value"], low, high)


def _change(value: float | None) -> Html:
    if value is None:
        return tag("td", "·", class_="none")
    kind = "up" if value > 0.0005 else "down" if value < -0.0005 else "same"
    return tag("td", f"{100 * value:+.1f}", class_=f"change {kind}")


def language(run: Run) -> Html | None:
    """Bits per byte by domain over the stages, beside the compressors that need no model."""
    cards = []
    for (_, task, _, metric), cells in _rows(run, ["language"]).items():
        seen = [(stage, cell) for stage, cell in cells.items() if cell["value"] is not None]
        if not seen:
            continue
        bands = {name: v for _, c in seen for name, v in (c.get("baseline") or {}).items()}
        points = [(float(n), float(cell["value"])) for n, (_, cell) in enumerate(seen)]
        cards.append(
            charts.curve(
                task if metric == "bpb" else f"{task} {metric}",
                points,
                unit="",
                bands=sorted((name, float(v)) for name, v in bands.items() if v is not None),
                labels=[stage for stage, _ in seen],
                note=f"{points[0][1]:.2f} → {points[-1][1]:.2f}" if len(points) > 1 else "",
            )
        )
    text = (
        "Held-out documents; lower is better. Dashed: gzip and an n-gram model on the same bytes, "
        "after reading all training text of the set, which may be more than the model has."
    )
    return (
        tag("div", tag("div", cards, class_="grid"), tag("p", text, class_="note"))
        if cards
        else None
    )


def time(run: Run) -> Html | None:
    """Seconds and tokens per stage."""
    if not run.stages:
        return None
    total = sum(stage.get("seconds") or 0 for stage in run.stages)
    ribbon = [
        tag(
            "i",
            class_=f"kind {_word(s.get('kind'))}",
            style=f"flex-grow:{s['seconds']}",
            title=_title(s),
        )
        for s in run.stages
        if s.get("seconds")
    ]
    head = tag(
        "tr",
        [
            tag("th", t, scope="col")
            for t in ("stage", "seconds", "share", "tokens", "tokens/s", "")
        ],
    )
    return tag(
        "div",
        tag("div", ribbon, class_="ribbon", aria_hidden="true"),
        wide_table(head, [_spent(stage, total) for stage in run.stages], "plain"),
    )


def _title(stage: Line) -> str:
    return f"{stage.get('name')}: {duration(stage['seconds'])}"


def _word(kind: object) -> str:
    return str(kind) if str(kind).isalnum() else "other"


def _spent(stage: Line, total: float) -> Html:
    seconds, tokens = stage.get("seconds"), stage.get("tokens")
    kind = str(stage.get("kind", ""))
    dot = tag("i", class_=f"kind {_word(kind)}")
    name = str(stage.get("name", ""))
    return tag(
        "tr",
        tag("th", dot, tag("b", name), tag("small", kind) if kind != name else None, scope="row"),
        tag("td", f"{seconds:,.0f}" if seconds is not None else "·"),
        tag("td", f"{100 * seconds / total:.0f} %" if seconds and total else "·"),
        tag("td", f"{tokens:,.0f}" if tokens else "·"),
        tag("td", f"{tokens / seconds:,.0f}" if tokens and seconds else "·"),
        tag("td", stage.get("status", "")),
    )
