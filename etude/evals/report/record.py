"""What a run folder says of itself, read for the report; parts that are not there yet are empty."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from etude.errors import EtudeError
from etude.evals.figures import merged, results
from etude.files import read_json

Line = dict[str, Any]


@dataclass(slots=True)
class Run:
    """A run folder in memory.

    Attributes:
        about: `run.json`, without its stages.
        stages: rows of `run.json`: name, kind, seconds, tokens, status.
        recipe: text of the resolved recipe.
        metrics: lines of `metrics.jsonl` by stage, in order.
        evals: results of `evals/*.json`, in the order of the stages; those of another recipe that
            ran in the folder before are left out, here and in the samples.
        samples: answers by stage.
        corpus: the corpus' manifest.
        size: parameters: all, and active per token.
    """

    about: Line
    stages: list[Line]
    recipe: str = ""
    metrics: dict[str, list[Line]] = field(default_factory=dict)
    evals: list[Line] = field(default_factory=list)
    samples: dict[str, list[Line]] = field(default_factory=dict)
    corpus: Line = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return str(self.about.get("recipe", "run"))


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        EtudeError: there is no `run.json`, or a file is broken.
    """
    about = read_json(folder / "run.json")
    if not isinstance(about, dict) or not isinstance(about.get("stages"), list):
        raise EtudeError(str(folder / "run.json"), "is no record of a run", "recipe and stages")
    recipe, corpus = folder / "recipe.yaml", folder / "corpus.json"
    run = Run({k: v for k, v in about.items() if k != "stages"}, about["stages"])
    run.recipe = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    run.corpus = read_json(corpus) if corpus.exists() else {}
    order = [stage.get("name") for stage in run.stages]
    for line in lines(folder / "metrics.jsonl"):
        run.metrics.setdefault(str(line.get("stage", "")), []).append(line)
    found, stale = results(folder)
    others = {file.stem for file in stale}
    run.evals = sorted(
        merged(found), key=lambda e: (e.get("order", _place(order, e["stage"])), e["stage"])
    )
    files = sorted(
        (folder / "samples").glob("*.json"), key=lambda f: _place(order, f.stem.partition("@")[0])
    )
    run.samples = {file.stem: read_json(file) for file in files if file.stem not in others}
    run.size = _size(recipe) if run.recipe else {}
    return run


def _place(order: list[Any], stage: str) -> int:
    return order.index(stage) if stage in order else -1  # the untrained model comes first


def lines(path: Path) -> list[Line]:
    """Whole lines only: a kill may have cut the last one short."""
    found = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict):
                found.append(line)
    return found


def _size(recipe: Path) -> dict[str, int]:
    """Parameters of the recipe's model; nothing where the recipe names a checkpoint instead."""
    from etude.arch import count
    from etude.models.table import family, size
    from etude.recipe.load import load

    try:
        model = load(str(recipe)).model
    except EtudeError:
        return {}
    if model.family is None:
        return {}
    counts = count(family(model.family).arch(size(model.family, model.size) | model.config))
    return {"all": counts.trunk + counts.mtp, "active": counts.active_head}


def number(value: object) -> TypeGuard[float]:
    """Whether a recorded value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
