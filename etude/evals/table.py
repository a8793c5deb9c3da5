"""The tables people read: a run stage by stage, several seeds with intervals, and the gains."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, groupby
from pathlib import Path
from typing import Any

from etude.evals import ladder
from etude.evals.figures import Figures, load, over_runs, results
from etude.evals.gains import Gain, gains, pairs
from etude.evals.stats import Estimate, reach
from etude.recipe.load import load as read_recipe

LEFT = 4  # columns of words before the figures
BITS = ("bpb", "clean bpb", "bpb there", "max score", "tok/s", "MB kept")  # no shares
BASELINES = (
    "gzip and ngram (5 bytes, Kneser-Ney) have first read all training text of the set, which may"
    " be more than the model has; gzip looks back 32 kB."
)


def aggregate(folders: Sequence[str | Path]) -> dict[str, Any]:
    """Return the table of a run, or of several seeds of one recipe, as plain data.

    Of one run the intervals are over problems (documents); of several they are Student's 95%
    intervals of the mean over seeds. Gains are differences taken inside each seed.

    Returns:
        `runs`, `columns`, `rows` (column, task, level, mode, metric, `turns` where several were
        asked for, and a cell per column), `gains` (label, the same keys, one cell), `left_out`
        (files of figures that are not of the recipe that ran last) and, where one was measured,
        `ladder` (see `etude.evals.ladder`); a cell is value, low, high and n, unknown bounds None.

    Raises:
        EtudeError: a folder has no evaluations, or one measures other stages than the first.
    """
    runs = {str(folder): load(folder) for folder in folders}
    figures = over_runs(runs)
    recipe = Path(folders[0]) / "recipe.yaml"
    wanted = pairs(read_recipe(str(recipe)), figures.columns) if recipe.exists() else []
    stale = [str(file) for folder in folders for file in results(folder)[1]]
    rungs = ladder.summary([results(folder)[0] for folder in folders])
    told = {"runs": list(runs), "left_out": stale} | ({"ladder": rungs} if rungs else {})
    return as_json(figures, gains(runs, wanted)) | told


def as_json(figures: Figures, gained: Iterable[Gain] = ()) -> dict[str, Any]:
    """Return figures and gains as plain data."""
    rows = [
        key.named | {"cells": [_cell(estimate) for estimate in row]}
        for key, row in figures.rows.items()
    ]
    found = [
        {"label": label} | key.named | {"cell": _cell(estimate)} for label, key, estimate in gained
    ]
    return {"columns": list(figures.columns), "rows": rows, "gains": found}


def render(table: Mapping[str, Any]) -> str:
    """Return a table of `aggregate` as aligned plain lines by column, the gains below."""
    parts = [_aligned(*block) for block in _blocks(table)]
    parts += [_aligned(*_gains(table))] if table["gains"] else []
    parts += [ladder.render(table["ladder"])] if table.get("ladder") else []
    return "\n\n".join([*parts, _legend(table)])


def figure(cell: Mapping[str, Any] | None, metric: str, *, signed: bool = False) -> str:
    """Write a cell: percent with one digit, or bits with three, and its interval's reach."""
    if cell is None or cell["value"] is None:
        return "-"
    scale, digits = (1, 3) if metric in BITS else (100, 1)
    sign = "+" if signed else ""
    text = f"{cell['value'] * scale:{sign}.{digits}f}"
    if cell["low"] is None:
        return text
    far = reach(cell["value"], cell["low"], cell["high"])
    return f"{text} ±{far * scale:.{digits}f}"


Lines = tuple[list[str], list[list[str]]]


def _blocks(table: Mapping[str, Any]) -> list[Lines]:
    """One block per column of the report, with only the stages that were asked for it."""
    found = []
    for column, rows in groupby(table["rows"], key=lambda row: row["column"]):
        block = list(rows)
        known = [any(row["cells"][n] for row in block) for n in range(len(table["columns"]))]
        lines = [
            ["", *_words(row), *(figure(c, row["metric"]) for c in compress(row["cells"], known))]
            for row in block
        ]
        found.append(
            ([column, "task", "mode", "metric", *compress(table["columns"], known)], lines)
        )
    return found


def _gains(table: Mapping[str, Any]) -> Lines:
    lines, before = [], ""
    for row in table["gains"]:
        label = row["label"] if row["label"] != before else ""
        lines.append([label, *_words(row), figure(row["cell"], row["metric"], signed=True)])
        before = row["label"]
    return ["gain", "task", "mode", "metric", "difference"], lines


def _words(row: Mapping[str, Any]) -> list[str]:
    task = row["task"] if row["level"] is None else f"{row['task']} {row['level']}"
    limit = f", turns {row['turns']}" if "turns" in row else ""
    return [f"{task}{limit}", row["mode"], row["metric"]]


def _legend(table: Mapping[str, Any]) -> str:
    runs = len(table.get("runs", [1]))
    over = f"the mean over {runs} seeds" if runs > 1 else "one run, over its problems"
    text = (
        "Answers in percent, bpb in bits per byte (lower is better); "
        f"± is the farther end of the 95% interval of {over}."
    )
    text = f"{text}\n{BASELINES}" if "ngram" in table["columns"] else text
    stale = ", ".join(table.get("left_out", ()))
    return f"{text}\nLeft out, as measured under another recipe: {stale}." if stale else text


def _aligned(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, *lines]
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < LEFT else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cell(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    numbers = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    known = {name: value if value == value else None for name, value in numbers.items()}
    return known | {"n": estimate.n}
