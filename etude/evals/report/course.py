"""How a run went: all its numbers over steps, and the load of its experts."""

from collections.abc import Sequence

from etude.evals.report import charts
from etude.evals.report.html import Html, tag
from etude.evals.report.record import Line, Run, number

FIRST = (
    *("loss", "reward", "pass", "held_out_accuracy", "accuracy", "margin"),
    *("kl_reverse", "kl_forward", "agreement", "entropy", "length", "max_logit"),
    *("mtp_loss", "grad_norm", "max_load"),
)
MAIN = 4  # curves of a stage that show at once
HIDDEN = {"stage", "step", "time"}


def curves(run: Run) -> Html | None:
    """All numbers of `metrics.jsonl`, stage by stage; the first ones open."""
    parts = []
    for stage, lines in run.metrics.items():
        series = _series(lines)
        if not series:
            continue
        names = sorted(series, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))
        shown = [charts.curve(name, series[name]) for name in names]
        main, rest = shown[:MAIN], shown[MAIN:]
        more = tag(
            "details", tag("summary", f"{len(rest)} more"), tag("div", rest, class_="grid small")
        )
        parts.append(
            tag(
                "article",
                tag(
                    "h3",
                    stage,
                    tag("small", f"{int(max(p[-1][0] for p in series.values()))} steps"),
                ),
                tag("div", main, class_="grid small"),
                more if rest else None,
            )
        )
    return tag("div", parts) if parts else None


def _series(lines: Sequence[Line]) -> dict[str, list[charts.Point]]:
    """Points of each numeric key; values that are not finite are left out."""
    series: dict[str, list[charts.Point]] = {}
    for n, line in enumerate(lines):
        step = line.get("step", n)
        for name, value in line.items():
            if name not in HIDDEN and number(value) and number(step):
                series.setdefault(name, []).append((float(step), float(value)))
    return series


def experts(run: Run) -> Html | None:
    """Tokens per expert and layer, at the start and at the end of each stage that routes."""
    parts = []
    for stage, lines in run.metrics.items():
        loads = [line["load"] for line in lines if _grid(line.get("load"))]
        if not loads:
            continue
        some = max(1, len(loads) // 10)
        pair = (("first steps", loads[:some]), ("last steps", loads[-some:]))
        maps = [
            charts.heat(_mean(part), name=name, row="layer", column="expert") for name, part in pair
        ]
        title = tag("summary", tag("b", stage), tag("small", f"{len(loads)} steps"))
        grid = tag("div", maps, class_="grid wide")
        parts.append(tag("details", title, grid, open=not parts))
    if not parts:
        return None
    text = "Tokens of each expert beside its layer's mean: pale is the mean, warm more, cold less."
    return tag("div", tag("p", text, class_="note"), parts)


def _grid(load: object) -> bool:
    rows = load if isinstance(load, list) else []
    return bool(rows) and all(isinstance(r, list) and r and all(map(number, r)) for r in rows)


def _mean(loads: Sequence[list[list[float]]]) -> list[list[float]]:
    alike = [load for load in loads if [len(r) for r in load] == [len(r) for r in loads[-1]]]
    return [
        [sum(cell) / len(alike) for cell in zip(*rows, strict=True)]
        for rows in zip(*alike, strict=True)
    ]
