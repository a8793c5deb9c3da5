"""Questions and their rewards for other trainers: verl's parquet files, a `verifiers` package.

Only what both know is exported: one question, one answer. The exported reward is ours, called by
the item's own family, so etude is installed beside the trainer. Held-out questions go into verl's
test file, and never into a set that trains.

Formats: verl-project/verl 0.10 (`examples/data_preprocess/gsm8k.py`,
`experimental/reward_loop/reward_manager/naive.py`); PrimeIntellect-ai/verifiers 0.4
(`docs/v1/tasksets.md`), which prime-rl trains on.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from etude.data import tasks
from etude.data.tasks import Call, Item
from etude.errors import EtudeError
from etude.files import atomic, atomic_folder
from etude.recipe.parts import Environment
from etude.rl.kinds import function
from etude.rl.problems import Problem
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.turns import Message

Format = Literal["verl", "verifiers"]
SOURCE = "etude/"  # before the family, in verl's `data_source`


def export(
    format: Format,
    folder: Path,
    names: Sequence[str],
    *,
    count: int = 1000,
    held: int = 200,
    seed: int = 0,
) -> str:
    """Write questions of task families and their reward into a new folder.

    Args:
        format: `verl` (train.parquet, test.parquet, reward.py) or `verifiers` (a package).
        folder: written whole or not at all; its name is that of the package.
        names: families, with levels where they are not to be 0: `rev`, `sort:1,2`, `rg:gcd`.
        count: questions that train, in all.
        held: questions that do not, in all (verl's test file, the package's `test` split).
        seed: of the draw.

    Returns:
        One line that says what was written, and how it is used.

    Raises:
        EtudeError: an unknown family or level, a family that needs tools or whose items cannot be
            written down, pyarrow is missing, or `folder` is there already.
    """
    if folder.exists():
        raise EtudeError(str(folder), "is there already", "a new folder")
    drawn = {
        "train": _draw(names, count, seed, held=False),
        "test": _draw(names, held, seed, held=True),
    }
    with atomic_folder(folder) as new:
        if format == "verl":
            return _verl(new, folder, drawn)
        return _verifiers(new, folder, drawn)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **more: Any,
) -> float:
    """Return the reward of an answer, by the signature of verl's `custom_reward_function`.

    Args:
        data_source: `etude/FAMILY`.
        solution_str: what the model wrote.
        ground_truth: an answer that scores 1; used where `extra_info` holds no item.
        extra_info: with the item as JSON under `item`.
        **more: what verl adds, of no account here.
    """
    text = (extra_info or {}).get("item")
    if text is None:
        item = Item(data_source.removeprefix(SOURCE), 0, "", ground_truth)
    else:
        item = read(text)
    return score(item, solution_str)


def score(item: Item, text: str) -> float:
    """Return the reward of a text: by the family, or by the environment that runs what it says."""
    if function(item.family, "group", group) is group:
        return float(tasks.score(item, text))
    problem = Problem(Environment(name=item.family), item)
    with Toolbox() as toolbox:
        [environment] = group(problem, 1, toolbox)

        async def play() -> float:
            await environment.start()
            visible = text.rpartition("</think>")[2].strip()
            return (await environment.step(Message(content=visible))).reward

        return asyncio.run(play())


def written(item: Item) -> str:
    """Return an item as JSON that `read` takes.

    Raises:
        EtudeError: what its family scores by is no plain data.
    """
    try:
        return json.dumps(asdict(replace(item, data=dict(item.data))))
    except (TypeError, ValueError) as error:
        found = f"holds what is no plain data ({error})"
        raise EtudeError(f"task {item.family}", found, do="leave it out") from error


def read(text: str) -> Item:
    """Return the item that `written` wrote."""
    kept = json.loads(text)
    calls = tuple(Call(**call) for call in kept.pop("calls"))
    return Item(**kept | {"calls": calls, "tools": tuple(kept["tools"])})


def _draw(names: Sequence[str], count: int, seed: int, *, held: bool) -> list[Item]:
    """Return `count` items in all, as many of each family and level as of any other."""
    kinds = [kind for name in names for kind in _levels(name)]
    if not kinds:
        raise EtudeError("data export", "no family", "one at least, e.g. rev or sort:1")
    found = []
    for n, (name, level) in enumerate(kinds):
        share = len(range(n, count, len(kinds)))
        items = tasks.items(name, level, share, seed, held=held)
        if any(item.tools for item in items):
            said = "asks for tools, and what is exported is one question and one answer"
            raise EtudeError(f"task {name}", said, do="leave it out")
        found += items
    return found


def _levels(name: str) -> list[tuple[str, int]]:
    """Read `sort:1,2`; the colon of `rg:gcd` belongs to the name."""
    family, colon, told = name.rpartition(":")
    if not colon or not all(part.strip().isdigit() for part in told.split(",")):
        return [(name, 0)]
    return [(family, int(part)) for part in told.split(",")]


def _verl(new: Path, folder: Path, drawn: Mapping[str, Sequence[Item]]) -> str:
    for split, items in drawn.items():
        _parquet(new / f"{split}.parquet", [_row(item, n, split) for n, item in enumerate(items)])
    (new / "reward.py").write_text(_template("verl_reward.py"), encoding="utf-8")
    count = ", ".join(f"{len(items)} {split}" for split, items in drawn.items())
    return (
        f"{folder}: {count} questions; data.train_files={folder}/train.parquet "
        f"data.val_files={folder}/test.parquet custom_reward_function.path={folder}/reward.py"
    )


def _row(item: Item, index: int, split: str) -> dict[str, Any]:
    return {
        "data_source": SOURCE + item.family,
        "prompt": [{"role": "user", "content": item.question}],
        "ability": item.family,
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "extra_info": {
            "split": split,
            "index": index,
            "level": item.level,
            "answer": item.answer,
            "question": item.question,
            "item": written(item),
        },
    }


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        do = "pip install 'etude[data]'"
        raise EtudeError("data export verl", "needs pyarrow, which is not here", do=do) from error
    text, whole = arrow.string(), arrow.int64()
    message = arrow.struct([("role", text), ("content", text)])
    info = [("split", text), ("index", whole), ("level", whole)]
    info += [(name, text) for name in ("answer", "question", "item")]
    reward = arrow.struct([("style", text), ("ground_truth", text)])
    columns = [("data_source", text), ("prompt", arrow.list_(message)), ("ability", text)]
    columns += [("reward_model", reward), ("extra_info", arrow.struct(info))]
    parquet.write_table(arrow.Table.from_pylist(rows, schema=arrow.schema(columns)), path)


def _verifiers(new: Path, folder: Path, drawn: Mapping[str, Sequence[Item]]) -> str:
    package = folder.name.replace("-", "_")
    if not package.isidentifier():
        raise EtudeError(str(folder), "is no name of a package", "letters, digits and _, e.g. sums")
    home = new / package
    home.mkdir()
    title = "".join(part.capitalize() for part in package.split("_") if part)
    words = {"PACKAGE": package, "TITLE": title, "NAME": package.replace("_", "-")}
    files = {"pyproject.toml": new, "__init__.py": home, "taskset.py": home}
    for name, place in files.items():
        text = _template(f"verifiers_{name.removeprefix('__').replace('__', '')}")
        for key, value in words.items():
            text = text.replace(f"@{key}@", value)
        (place / name).write_text(text, encoding="utf-8")
    for split, items in drawn.items():
        with atomic(home / f"{split}.jsonl", "w") as file:
            file.writelines(written(item) + "\n" for item in items)
    count = ", ".join(f"{len(items)} {split}" for split, items in drawn.items())
    return f"{folder}: {count} questions; pip install -e {folder}, and taskset id {words['NAME']}"


def _template(name: str) -> str:
    home = resources.files("etude.rl") / "templates" / f"{name}.txt"
    return home.read_text(encoding="utf-8")
