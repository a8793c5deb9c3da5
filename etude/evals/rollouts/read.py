"""Recorded rollouts, read back: whole lines only, with what the update said of their tokens."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etude.errors import EtudeError, closest
from etude.files import digest

Line = dict[str, Any]
PER_TOKEN = ("logp", "advantage", "ratio", "entropy", "old", "ref", "value", "versions")


@dataclass(slots=True)
class Recorded:
    """What a run's files hold.

    Attributes:
        stages: attempts of each stage, in the order they were written.
        damaged: lines of each stage that could not be read.
        written: attempts there are; more than in `stages` where only some were asked for.
    """

    stages: dict[str, list[Line]] = field(default_factory=dict)
    damaged: dict[str, int] = field(default_factory=dict)
    written: int = 0

    @property
    def count(self) -> int:
        """Attempts at hand."""
        return sum(map(len, self.stages.values()))


def read(folder: Path, *, stage: str | None = None, limit: int | None = None) -> Recorded:
    """Read the attempts of a run.

    Args:
        folder: of the run.
        stage: only this one.
        limit: attempts at most; whole groups at even distances over the run are kept.

    Raises:
        EtudeError: there is no such run or stage, or nothing is recorded.
    """
    if not folder.is_dir():
        raise EtudeError(str(folder), "no such run", "the folder of a run, as runs/glm45_quick")
    order = _order(folder)
    paths = sorted((folder / "rollouts").glob("*.jsonl"))
    files = {path.stem: path for path in sorted(paths, key=lambda path: order.get(path.stem, 0))}
    if not files:
        raise EtudeError(str(folder), "holds no rollouts", "a run whose rl stage has begun")
    if stage is not None and stage not in files:
        known = ", ".join(files)
        raise EtudeError(
            f"--stage {stage}", "no rollouts of it", f"one of {known}", closest(stage, files)
        )
    found = Recorded()
    for name, path in files.items():
        if stage in (None, name):
            found.stages[name], found.damaged[name] = _stage(path)
    if not found.count:
        where, bad = str(folder / "rollouts"), sum(found.damaged.values())
        raise EtudeError(where, f"no whole line, {bad} damaged", "a line of JSON an attempt")
    found.written = found.count
    if limit is not None and limit < found.count:
        _thin(found, limit)
    return found


def _order(folder: Path) -> dict[str, int]:
    """Return the places of the run's stages; none where `run.json` does not tell."""
    try:
        stages = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]
        return {stage["name"]: n for n, stage in enumerate(stages)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the page is about the rollouts; `report.html` tells of a damaged record


def _stage(path: Path) -> tuple[list[Line], int]:
    """Return one file's attempts, and how many lines are damaged."""
    rows: dict[str, Line] = {}
    damaged = 0
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise EtudeError(str(path), f"cannot be read ({error.strerror})", code=1) from error
    for text in filter(None, texts):
        try:
            line = json.loads(text)
            if "of" in line:
                _patch(rows, line)
            else:
                row = _row(line)
                row["key"] = row["key"] or f"old{len(rows)}"
                rows[row["key"]] = row
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged += 1
    return list(rows.values()), damaged


def _row(line: Line) -> Line:
    """Return one attempt, checked; of the older form with a text for a prompt and a reply too."""
    row = dict(line) if "pieces" in line else _older(line)
    pieces, ids, mask = row["pieces"], row["ids"], row["mask"]
    row["reward"], row["step"] = float(row["reward"]), int(row["step"])
    whole = len(pieces) == len(ids) and all(isinstance(piece, str) for piece in pieces)
    at = 0
    for a, b in mask:
        whole, at = whole and at <= a <= b <= len(ids), b
    if not whole:
        raise ValueError("tokens that do not fit their pieces or mask")
    produced = sum(b - a for a, b in mask)
    for name in PER_TOKEN:
        values = row.get(name)
        if isinstance(values, list):
            _check(name, values, produced)
    row.setdefault("raw", row["reward"])
    row.setdefault("problem", digest(str(row.get("task")), str(row.get("answer"))))
    row["key"] = str(row.get("key", ""))
    row["group"] = row["key"].rpartition(".")[0] or f"{row['step']}.{row['problem']}"
    return row


def _older(line: Line) -> Line:
    """Lines of before there were tokens: two pieces of text stand for all of them."""
    texts = [str(line["prompt"]), str(line["reply"])]
    row = dict(line) | {"ids": [-1, -1], "pieces": texts, "mask": [[1, 2]], "prompt": 1}
    return row | {"turns": [{}] * int(line.get("turns", 1)), "older": True}


def _patch(rows: dict[str, Line], line: Line) -> None:
    """Add what an update saw; the last one to train on an attempt stays."""
    row = rows[line["of"]]
    produced = sum(b - a for a, b in row["mask"])
    for name in ("ratio", "entropy"):
        if name in line:
            _check(name, line[name], produced)
    if not all(0 <= n < produced for n in line["clipped"]):
        raise ValueError("a clip outside of the tokens")
    row |= {name: line[name] for name in ("ratio", "entropy", "clipped", "update") if name in line}
    row["updates"] = row.get("updates", 0) + 1


def _check(name: str, values: list[Any], produced: int) -> None:
    if len(values) != produced or not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"{name} for other tokens, or no numbers")


def _thin(found: Recorded, limit: int) -> None:
    groups: dict[tuple[str, str], list[Line]] = {}
    for stage, rows in found.stages.items():
        for row in rows:
            groups.setdefault((stage, row["group"]), []).append(row)
    names = list(groups)
    share = max(1, math.floor(limit * len(names) / found.count))
    kept = {names[n * len(names) // share] for n in range(share)}
    room = limit
    found.stages = {stage: [] for stage in found.stages}
    for name in names:
        if name in kept:
            found.stages[name[0]] += groups[name][:room]
            room -= len(groups[name][:room])
