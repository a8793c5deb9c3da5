"""Run a recipe: its stages in order, each skipped when nothing it stands on has changed.

A run is a folder that holds everything:

    recipe.yaml                the resolved recipe
    run.json                   what ran, how long, and which stage the folder stands for
    metrics.jsonl              one object per step
    tokenizer/                 the vocabulary all stages share
    corpus.json                what the corpus holds and why documents were dropped
    stages/<name>/checkpoint/  the published layout, per stage
    stages/<name>/kept/        checkpoints on the way there, where the recipe asks for them
    stages/<name>/state/       exact training state of a stage that has not finished
    evals/ samples/ rollouts/  tables, answers, recorded attempts
    report.html                all of it on one page
"""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.data.check import check_names
from etude.errors import EtudeError
from etude.evals.figures import measured, results
from etude.files import atomic, read_json, write_json
from etude.models import table
from etude.models.describe import by_stage, length_key, planned, swap_told
from etude.parallel.environ import process
from etude.recipe.fit import check_dtype, check_fit
from etude.recipe.identity import figure_file, figure_keys, identities
from etude.recipe.load import dump, load
from etude.recipe.post import RewardModel
from etude.recipe.stages import Eval, Recipe, Stage

if TYPE_CHECKING:
    from etude.workshop import Workshop


def folder_of(recipe: Recipe, default_seed: int) -> Path:
    """Return where a run goes when nothing is said: other parts or seeds have their own folder."""
    of = recipe.model
    parts = (of.mixer, of.every, of.window, of.ffn, of.router, of.norm, of.match)
    suffix = "".join(f"-{part}" for part in parts if part)
    suffix += "" if recipe.seed == default_seed else f"-seed{recipe.seed}"
    return Path("runs") / f"{recipe.recipe}{suffix}"


def train(
    name: str,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    until: str | None = None,
    as_json: bool = False,
) -> Path:
    """Run every stage of a recipe that is not finished yet.

    Args:
        name: shipped recipe or YAML file.
        overrides: `key=value`, see `etude.recipe.load`.
        out: run folder.
        until: last stage to run.
        as_json: print machine-readable lines.

    Returns:
        The run folder.

    Raises:
        EtudeError: wrong recipe, unknown stage, two runs in one folder, or a fault while working.
    """
    here = process()
    recipe = load(name, overrides)
    _known(recipe, until)
    folder = out or folder_of(recipe, load(name).seed)
    names = identities(recipe)
    again = shlex.join([name, *(text for text in overrides if not text.startswith("seed="))])
    done = _finished(folder, recipe)
    waiting = [stage for stage in _wanted(recipe, until) if stage.name not in done]
    if not waiting:
        if here.rank == 0:
            record(folder, recipe)  # a kill may have come between a stage's end and this
            _tell(folder, recipe, again, as_json=as_json)
        return folder
    check_dtype(recipe, processes=here.world, gpu=has_gpu)
    check_fit(recipe, planned(recipe), by_stage(recipe), key=length_key(recipe))
    check_names(recipe, ready=True)
    from etude.opening import open_run  # torch; a finished run is answered without it

    with open_run(recipe, folder, as_json=as_json) as shop:
        if shop.ranks.main:
            with atomic(folder / "recipe.yaml", "w") as file:
                file.write(dump(recipe))
        if recipe.model.swapped:
            shop.log.say(swap_told(recipe))
        for stage in waiting:
            place = recipe.stages.index(stage) + 1
            shop.log.say(f"{place}/{len(recipe.stages)} {stage.name} ({stage.stage})")
            _run(shop, stage, names[stage.name])
    if shop.ranks.main:
        _tell(folder, recipe, again, as_json=as_json)
    return folder


def has_gpu() -> bool:
    """Whether this machine has a GPU; it takes torch to know, so only who must asks."""
    from etude.parallel import launch

    return launch.has_gpu()


def _run(shop: "Workshop", stage: Stage, identity: str) -> None:
    began = time.monotonic()
    before = _identity(shop.folder, stage)
    if shop.ranks.main and before not in (None, identity):  # figures of another stage of this name
        for file in (shop.folder / "evals").glob(f"{stage.name}*.json"):
            if file.stem.partition("@")[0] == stage.name:
                file.unlink()
    result = shop.run(stage)
    if shop.ranks.main:
        seconds = round(time.monotonic() - began, 1)
        done = {"identity": identity, "stage": stage.stage, "seconds": seconds}
        write_json(shop.folder / "stages" / stage.name / "done.json", done | result)
        record(shop.folder, shop.recipe)


def record(folder: Path, recipe: Recipe) -> None:
    """Write `run.json` from the finished stages; `last` is the newest one that has a checkpoint.

    A stage that was finished under another description waits: it is not part of this run. `figures`
    holds the keys of the evaluations that are; the folder may hold those of other recipes.
    """
    rows: list[dict[str, Any]] = []
    last, finished = None, _finished(folder, recipe)
    for stage in recipe.stages:
        if stage.name in finished:
            done = read_json(folder / "stages" / stage.name / "done.json")
            rows.append({"name": stage.name, "kind": stage.stage, "status": "done", **done})
            last = last if isinstance(stage, Eval | RewardModel) else stage.name
        else:
            rows.append({"name": stage.name, "kind": stage.stage, "status": "waiting"})
    about = {"recipe": recipe.recipe, "about": recipe.about, "seed": recipe.seed}
    told = {"last": last, "stages": rows, "figures": figure_keys(recipe)}
    write_json(folder / "run.json", about | told)


def _wanted(recipe: Recipe, until: str | None) -> list[Stage]:
    names = [stage.name for stage in recipe.stages]
    return list(recipe.stages[: names.index(until) + 1] if until else recipe.stages)


def _known(recipe: Recipe, until: str | None) -> None:
    names = [stage.name for stage in recipe.stages]
    if until is not None and until not in names:
        raise EtudeError(f"--until {until}", "no such stage", ", ".join(names))


def _finished(folder: Path, recipe: Recipe) -> set[str]:
    """Return the stages that were finished under this description and left what they should."""
    names, keys = identities(recipe), figure_keys(recipe)

    def left(stage: Stage) -> bool:
        if isinstance(stage, Eval):  # another recipe may have measured its own stage of this name
            files = {name: figure_file(recipe, stage, name) for name in stage.of}
            return all(measured(folder, file) in keys[name] for name, file in files.items())
        return (folder / "stages" / stage.name / "checkpoint" / "config.json").exists()

    same = (stage for stage in recipe.stages if _identity(folder, stage) == names[stage.name])
    return {stage.name for stage in same if left(stage)}


def _identity(folder: Path, stage: Stage) -> str | None:
    """Return what a stage was when it was last finished here."""
    path = folder / "stages" / stage.name / "done.json"
    done = read_json(path) if path.exists() else {}
    if not isinstance(done, dict):
        raise EtudeError(str(path), "is damaged", do="delete it, and the stage runs again")
    return done.get("identity")


def _tell(folder: Path, recipe: Recipe, again: str, *, as_json: bool) -> None:
    """Write the page, print the table, and say what to do next; `again` names the recipe."""
    from etude.evals.page import write_report
    from etude.evals.table import aggregate, render

    page = write_report(folder)
    found = aggregate([folder]) if results(folder)[0] else None
    if as_json:
        print(json.dumps({"run": str(folder), "report": str(page), "table": found}))
        return
    if found:
        print(render(found))
    done = [row for row in read_json(folder / "run.json")["stages"] if row["status"] == "done"]
    count = f"{len(done)} of {len(recipe.stages)} stages done"
    seconds = sum(row["seconds"] for row in done)
    print(f"\n{recipe.recipe}: {count}, {seconds / 60:.1f} minutes of work")
    for command, why in _next(folder, page, recipe, again):
        print(f"  {command:44s} {why}")


def _next(folder: Path, page: Path, recipe: Recipe, again: str) -> list[tuple[str, str]]:
    family = recipe.model.family
    talks = family is None or table.family(family).CHAT is not None
    chat = [(f"etude chat {folder}", "talk to it: /think /nothink /tools")] if talks else []
    return [
        (f"open {page}", "curves, table, samples on one page"),
        *chat,
        (f"etude show {folder}", "the model on one page"),
        (f"etude plan {again}", "what each stage costs"),
        (f"etude train {again} seed={recipe.seed + 1}", "the same with another seed"),
    ]
