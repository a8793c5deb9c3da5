"""Measured figures by what they measure and by stage: of one run, and of several seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from etude.errors import EtudeError
from etude.evals.stats import Estimate, t_interval
from etude.files import read_json


class Key(NamedTuple):
    """What a row measures; `turns` only where several were asked for."""

    column: str
    task: str
    level: int | None
    mode: str
    metric: str
    turns: int | None = None

    @property
    def named(self) -> dict[str, Any]:
        """As the row of a table names it."""
        own = self._asdict()
        if self.turns is None:
            del own["turns"]
        return own


@dataclass(frozen=True, slots=True)
class Figures:
    """Estimates by what they measure and by stage.

    Args:
        columns: names of stages, then of baselines.
        rows: what is measured, in order, with one estimate per column (None: not measured).
    """

    columns: tuple[str, ...]
    rows: dict[Key, tuple[Estimate | None, ...]]

    def cell(self, key: Key, column: str) -> Estimate | None:
        """Return one estimate, or None where nothing was measured."""
        row = self.rows.get(key)
        return row[self.columns.index(column)] if row and column in self.columns else None


def load(folder: str | Path) -> Figures:
    """Return the evaluations of a run, a column per stage and then one per baseline.

    Raises:
        EtudeError: the folder holds none, or one is broken.
    """
    found, stale = results(folder)
    if not found:
        which = " of the recipe that ran last" if stale else ""
        wanted = "a run with an eval stage that is done"
        raise EtudeError(str(folder), f"holds no evaluation{which}", wanted)
    return build(sorted(merged(found), key=lambda r: (r.get("order", 0), r["stage"])))


def results(folder: str | Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Return what `harness.evaluate` gave for the stages of a run, and the files left out.

    Another recipe may have run in the folder before, or this one with other settings. `run.json`
    names the figures of the run that was last at work; a file that bears another key is left out.
    Where it names none, nothing is.

    Raises:
        EtudeError: `run.json` or an evaluation is broken.
    """
    run = Path(folder) / "run.json"
    about = read_json(run) if run.exists() else {}
    keys = about.get("figures") if isinstance(about, dict) else None
    found: list[dict[str, Any]] = []
    stale: list[Path] = []
    for file in sorted((Path(folder) / "evals").glob("*.json")):
        result = read_json(file)
        if not isinstance(result, dict) or not {"stage", "rows"} <= result.keys():
            raise EtudeError(str(file), "is no evaluation", "stage and rows")
        if isinstance(keys, dict) and result.get("key") not in keys.get(result["stage"], ()):
            stale.append(file)
        else:
            found.append(result)
    return found, stale


def merged(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one result per stage, where several evaluations of a recipe measure the same one.

    Of two that measure the same thing the later one counts; what is measured by place in a text, or
    behind a context, belongs together and is not mixed.
    """
    found: dict[str, dict[str, Any]] = {}
    for result in sorted(results, key=lambda r: r.get("by", 0)):
        before = found.get(result["stage"], {"rows": []})
        own = {_thing(row) for row in result["rows"]}
        kept = [row for row in before["rows"] if _thing(row) not in own]
        found[result["stage"]] = {**before, **result, "rows": [*kept, *result["rows"]]}
    return list(found.values())


def _thing(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if row["column"] in ("length", "speed"):
        return row["column"], row["task"], row["metric"]
    return _key(row)


def measured(folder: Path, file: str) -> str | None:
    """Return the key that the figures in a file bear, None where there are none."""
    path = folder / "evals" / f"{file}.json"
    result = read_json(path) if path.exists() else {}
    return result.get("key") if isinstance(result, dict) else None


def build(results: Sequence[Mapping[str, Any]]) -> Figures:
    """Return what `harness.evaluate` gave for several stages, in their order."""
    cells: dict[Key, dict[str, Estimate]] = {}
    baselines: dict[str, None] = {}
    for result in results:
        for row in result["rows"]:
            found = cells.setdefault(_key(row), {})
            found[result["stage"]] = _estimate(row)
            for name, value in row.get("baseline", {}).items():
                baselines[name] = None
                found[name] = Estimate(value, math.nan, math.nan, row["n"])
    columns = (*(result["stage"] for result in results), *baselines)
    rows = {key: tuple(found.get(name) for name in columns) for key, found in cells.items()}
    groups = list(dict.fromkeys(key.column for key in rows))
    return Figures(columns, dict(sorted(rows.items(), key=lambda r: groups.index(r[0].column))))


def over_runs(runs: Mapping[str, Figures]) -> Figures:
    """Return the figures of several seeds of one recipe: means with 95% intervals (Student's t).

    One run keeps its own intervals, which are over problems.

    Args:
        runs: by folder.

    Raises:
        EtudeError: a run measures other stages than the first.
    """
    first, *rest = runs
    columns = runs[first].columns
    for folder in rest:
        if runs[folder].columns != columns:
            found, wanted = ", ".join(runs[folder].columns), ", ".join(columns)
            raise EtudeError(folder, f"measures {found}", f"{wanted} as {first} does")
    if not rest:
        return runs[first]
    rows = {}
    for key in dict.fromkeys(key for run in runs.values() for key in run.rows):
        rows[key] = tuple(
            over_seeds([run.cell(key, name) for run in runs.values()]) for name in columns
        )
    return Figures(columns, rows)


def over_seeds(cells: Iterable[Estimate | None]) -> Estimate | None:
    """Return the mean of the seeds' values with its interval; None where no seed has one."""
    values = [cell.value for cell in cells if cell is not None and cell.value == cell.value]
    return t_interval(values) if values else None


def _key(row: Mapping[str, Any]) -> Key:
    own = {name: row[name] for name in Key._fields if name != "turns"}
    return Key(**own, turns=row.get("turns"))


def _estimate(row: Mapping[str, Any]) -> Estimate:
    value, low, high = (math.nan if row[n] is None else row[n] for n in ("value", "low", "high"))
    return Estimate(value, low, high, row["n"])
