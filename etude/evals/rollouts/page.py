"""`rollouts.html`: every recorded attempt of a run, its tokens coloured by what they received.

The page makes no request, and a policy inside it forbids any. All data lies in it as text that is
no script, packed (gzip, base64) unless asked otherwise; a browser unpacks 10,000 attempts at once,
and takes an attempt's tokens apart when it is opened.
"""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etude.evals.report import charts
from etude.evals.report.html import Html, tag
from etude.evals.report.record import lines, number
from etude.evals.rollouts.read import Line, Recorded, read
from etude.files import atomic

SHARED = Path(__file__).parents[1] / "report" / "assets"
ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("data.js", "tokens.js", "view.js", "app.js")
MILLI = 1000  # values travel as whole thousandths
EXTREME = 0.02  # share of a scale's values that may lie beyond its ends
SUMMARY = ("reward", "raw", "tokens", "age")  # numbers of an attempt that the list needs


def write_rollouts(
    folder: str | Path,
    *,
    stage: str | None = None,
    out: Path | None = None,
    limit: int | None = None,
    plain: bool = False,
) -> tuple[Path, Recorded]:
    """Write the page of a run's recorded rollouts.

    Args:
        folder: of the run.
        stage: only this one.
        out: file to write; None is `rollouts.html` in the folder.
        limit: attempts at most.
        plain: leave the data unpacked, for browsers without `DecompressionStream`.

    Returns:
        The file, and what was read.

    Raises:
        EtudeError: there is no such run or stage, nothing is recorded, or the page cannot be
            written.
    """
    folder = Path(folder)
    found = read(folder, stage=stage, limit=limit)
    path = out or folder / "rollouts.html"
    with atomic(path, "w") as file:
        file.write(page(folder.resolve().name, found, lines(folder / "metrics.jsonl"), plain=plain))
    return path, found


def page(name: str, found: Recorded, metrics: Iterable[Line] = (), *, plain: bool = False) -> str:
    """The whole page.

    Args:
        name: of the run.
        found: its attempts.
        metrics: lines of `metrics.jsonl`, for the curves on top.
        plain: as above.
    """
    own = "\n".join((ASSETS / script).read_text(encoding="utf-8") for script in SCRIPTS)
    script = (SHARED / "page.js").read_text(encoding="utf-8") + f"\n(() => {{\n{own}}})();\n"
    body = [
        _head(name, found),
        _strip(found, metrics),
        Html((ASSETS / "body.html").read_text(encoding="utf-8")),
        _data(pack(found), plain=plain),
        tag("script", Html(script)),
    ]
    return f"<!doctype html>\n{tag('html', _meta(name, script), tag('body', body), lang='en')}\n"


def pack(found: Recorded) -> str:
    """Return a line of JSON for all attempts, and one more for each one's tokens.

    The first holds a table of (id, text) of tokens, the ends of the colours' scales, and what the
    list shows of an attempt: place of its stage and of its task, then the rest of `_listed`.
    """
    table: dict[tuple[Any, str], int] = {}
    stages, tasks = list(found.stages), {}
    rows, bodies = [], []
    for at, stage in enumerate(stages):
        for row in found.stages[stage]:
            task = tasks.setdefault(str(row.get("task", "")), len(tasks))
            rows.append([at, task, *_listed(row)])
            bodies.append(_text(_tokens(row, table)))
    every = [row for stage in found.stages.values() for row in stage]
    head = {
        "stages": stages,
        "tasks": list(tasks),
        "pieces": [list(piece) for piece in table],
        "scales": _scales(every),
        "rows": rows,
    }
    return "\n".join([_text(head), *bodies])


def _listed(row: Line) -> list[Any]:
    own = [_milli(row["advantage"]) if number(row.get("advantage")) else _mean(row)]
    figures = [row.get(name) if number(row.get(name)) else None for name in SUMMARY]
    level = row.get("level")
    about = [row["key"], row["group"], row["step"], "" if level is None else str(level)]
    return [*about, str(row.get("status", "")), len(row.get("turns") or ()), *own, *figures]


def _mean(row: Line) -> int | None:
    values = row.get("advantage") or []
    return _milli(sum(values) / len(values)) if values else None


def _tokens(row: Line, table: dict[tuple[Any, str], int]) -> dict[str, Any]:
    """An attempt's tokens and what is known of them, as the page's script reads it."""
    pairs = zip(row["ids"], row["pieces"], strict=True)
    body = {"p": [table.setdefault(pair, len(table)) for pair in pairs], "m": row["mask"]}
    for short, name in (("l", "logp"), ("e", "entropy"), ("o", "old"), ("f", "ref")):
        if name in row:
            body[short] = [_milli(value) for value in row[name]]
    if "value" in row:
        body["u"] = [_milli(value) for value in row["value"]]
    if "ratio" in row:  # ten thousandths beside 1
        body["r"] = [_milli(10 * (value - 1)) for value in row["ratio"]]
    if "advantage" in row:
        given = row["advantage"]
        body["a"] = [*map(_milli, given)] if isinstance(given, list) else _milli(given)
    if len(set(row.get("versions") or ())) > 1:
        body["v"] = row["versions"]
    for short, name in (("c", "clipped"), ("t", "turns"), ("i", "info"), ("w", "answer")):
        if row.get(name) not in (None, "", {}):
            body[short] = row[name]
    told = ("terms", "version", "temperature", "update", "updates", "problem", "at", "older")
    return body | {"about": {name: row[name] for name in told if row.get(name) not in (None, {})}}


def _milli(value: object) -> int | None:
    return round(MILLI * value) if number(value) else None


def _scales(rows: Sequence[Line]) -> dict[str, float]:
    """Return where each colour is full: beyond it lie a few of the values at most."""
    found: dict[str, list[float]] = {"advantage": [], "ratio": [], "entropy": []}
    for row in rows:
        given = row.get("advantage")
        found["advantage"] += map(
            abs, filter(number, given if isinstance(given, list) else [given])
        )
        found["ratio"] += (abs(math.log(r)) for r in row.get("ratio", ()) if number(r) and r > 0)
        found["entropy"] += filter(number, row.get("entropy", ()))
    return {name: _end(sorted(values)) for name, values in found.items()}


def _end(values: list[float]) -> float:
    if not values or not values[-1] > 0:
        return 0.0
    # where nearly all are 0 (no drift, no advantage) the few others still show
    return values[math.ceil((len(values) - 1) * (1 - EXTREME))] or values[-1]


def _text(value: object) -> str:
    """JSON in ASCII on one line; what is not finite becomes null, which scripts can read."""
    dump = json.dumps(value, separators=(",", ":"), default=str)
    if "NaN" in dump or "Infinity" in dump:
        return json.dumps(_finite(value), separators=(",", ":"), default=str)
    return dump


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _data(text: str, *, plain: bool) -> Html:
    """A block that no browser runs; `<` is written so that no text in it can end it."""
    if plain:
        body, kind = text.replace("<", "\\u003c"), "application/json"
    else:
        packed = gzip.compress(text.encode(), compresslevel=6, mtime=0)
        body, kind = base64.b64encode(packed).decode(), "application/gzip"
    return tag("script", Html(body), id="data", type=kind)


def _meta(name: str, script: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    styles = [SHARED / "page.css", ASSETS / "rollouts.css"]
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"rollouts of {name} · etude"),
        [tag("style", Html(path.read_text(encoding="utf-8"))) for path in styles],
    )


def _head(name: str, found: Recorded) -> Html:
    some = f"{found.count:,} of {found.written:,}" if found.count < found.written else ""
    damaged = sum(found.damaged.values())
    told = [f"{some or f'{found.count:,}'} recorded rollouts"]
    told += [f"{damaged:,} damaged line{'s' * (damaged > 1)} left out"] if damaged else []
    theme = {"id": "theme", "type": "button", "title": "light or dark"}
    return tag(
        "header",
        tag("p", "etude rollouts", class_="eyebrow"),
        tag("button", "◐", aria_label="light or dark", **theme),
        tag("h1", name, tag("small", " · ".join(told))),
    )


def _strip(found: Recorded, metrics: Iterable[Line]) -> Html:
    """Reward and share of groups with signal by step; of all attempts where the log tells them."""
    logged: dict[str, list[Line]] = {}
    for line in metrics:
        logged.setdefault(str(line.get("stage", "")), []).append(line)
    shown = []
    for stage, rows in found.stages.items():
        seen = _logged(logged.get(stage, [])) or _recorded(rows)
        for name, points in seen.items():
            if points:
                shown.append(charts.curve(f"{name} · {stage}", points))
    return tag("div", shown, class_="strip", tabindex="0", aria_label="reward and signal by step")


def _logged(rows: Sequence[Line]) -> dict[str, list[charts.Point]]:
    names = {"reward": "reward", "mixed": "with signal"}
    found = {
        told: [(float(row["step"]), float(row[key])) for row in rows if number(row.get(key))]
        for key, told in names.items()
    }
    return found if found["reward"] else {}


def _recorded(rows: Sequence[Line]) -> dict[str, list[charts.Point]]:
    rewards: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        if number(row["reward"]):
            rewards.setdefault(row["step"], {}).setdefault(row["group"], []).append(row["reward"])
    mean, mixed = [], []
    for step, groups in sorted(rewards.items()):
        every = [reward for group in groups.values() for reward in group]
        signal = [len(set(group)) > 1 for group in groups.values()]
        mean.append((float(step), sum(every) / len(every)))
        mixed.append((float(step), sum(signal) / len(signal)))
    return {"recorded reward": mean, "recorded signal": mixed}
