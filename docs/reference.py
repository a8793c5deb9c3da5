"""The recipe reference, written from the recipe classes: fields, types, defaults and words."""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

from etude.arch import YaRN
from etude.recipe import (
    advantages,
    chats,
    corrections,
    curricula,
    engines,
    model,
    objectives,
    pace,
    parts,
    post,
    ptx,
    rewards,
    rollouts,
    stages,
)

INTRODUCTION = """# Recipe reference

Every key that a recipe may hold, written from the classes in `etude/recipe/` when these pages are
built. An unknown key or value is an error that names the nearest known one. Amounts of tokens may
be written `2M`, `1.5k`, `15T` or `2e6`. On the command line a stage is addressed by its name:
`etude train glm45_tiny pretrain.optimizer.learning_rate=5e-3`.

A stage is told apart by `stage`; a part that comes in several kinds by `kind`.

## The recipe
"""
STAGES = """## Stages

The keys of `Train` belong to every stage but `eval`; below it, each stage lists its own.
"""
PARTS = """## Parts

What the values of those keys are made of.
"""
MODULES = (
    *(model, chats, parts, pace),
    *(objectives, advantages, corrections, rollouts, rewards, curricula, engines, ptx, post),
)
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
NAMES = {"str": "text", "bool": "true or false", "float": "number", "NoneType": "null"}
ARGUMENT = re.compile(r"^ {4}(\w[\w, ]*): (.*)$")


def words(cls: type) -> tuple[str, dict[str, str]]:
    """Return the prose of a docstring, and the words on each field in its `Args:` block."""
    prose, _, block = (inspect.getdoc(cls) or "").partition("\nArgs:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in block.splitlines():
        match = ARGUMENT.match(line)
        if match:
            names = [name.strip() for name in match[1].split(",")]
            found |= dict.fromkeys(names, match[2])
        elif line.startswith(" " * 5):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return " ".join(prose.split()), found


def constraints(metadata: Iterable[Any]) -> Iterator[Any]:
    """Yield constraints, also those inside a nested `Field(...)`."""
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def bounds(metadata: Iterable[Any]) -> str:
    """Render the limits that stand beside a type: ` > 0`, ` from 0 to 1`."""
    found = list(constraints(metadata))
    limits = {name: getattr(c, name) for c in found for name in BOUNDS if hasattr(c, name)}
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']} to {limits['le']}"
    return "".join(f" {BOUNDS[name]} {value}" for name, value in limits.items())


def joined(options: tuple[Any, ...], limit: str) -> str:
    """Render a union; a limit goes to what it can limit, and null stands last."""
    named = [spelled(o) for o in options if o is not types.NoneType]
    return " or ".join([*(name + limit for name in named), *["null"] * (len(named) < len(options))])


def spelled(annotation: Any, limit: str = "") -> str:
    """Render a type in the words of someone who writes YAML."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return spelled(inner[0], bounds(annotation.__metadata__) or limit)
    if origin in (typing.Union, types.UnionType):
        return joined(inner, limit)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {spelled(inner[0])}" if inner[-1] is ... else f"{len(inner)} numbers"
    if origin is dict:
        return f"{spelled(inner[0])}: {spelled(inner[1])}"
    if getattr(annotation, "__module__", "").startswith("etude."):
        return f"[{annotation.__name__}](#{called(annotation).lower().replace(' ', '-')})"
    name = getattr(annotation, "__name__", "any value")
    return NAMES.get(name, name if annotation is not Any else "any value") + limit


def default(field: FieldInfo) -> str:
    """Render what a key is when it is left out."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if type(value).__module__.startswith("etude."):
        return f"{type(value).__name__}'s"
    return f"`{json.dumps(value)}`"


def table(cls: type, *, but: Iterable[str] = ()) -> str:
    """Render one class: a heading, its prose, and a row per field that is not in `but`."""
    prose = words(cls)[0]
    about = {k: v for base in reversed(cls.__mro__[:-1]) for k, v in words(base)[1].items()}
    rows = ["| key | value | default | |", "|-|-|-|-|"]
    for name, field in cls.__pydantic_fields__.items():
        if name not in but:
            told = spelled(field.annotation, bounds(field.metadata))
            cells = [f"`{field.alias or name}`", told, default(field), about.get(name, "")]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return f"### {called(cls)}\n\n{prose}\n\n" + ("\n".join(rows) + "\n") * (len(rows) > 2)


def described(module: types.ModuleType) -> list[type]:
    """Return the description classes that a module defines, in its order."""
    classes = [value for value in vars(module).values() if hasattr(value, "__pydantic_fields__")]
    return [cls for cls in classes if cls.__module__ == module.__name__]


def called(cls: type) -> str:
    """Return a heading that no other class has: its name, and its file where two share one."""
    same = [c for module in MODULES for c in described(module) if c.__name__ == cls.__name__]
    return cls.__name__ + f" in {cls.__module__.rpartition('.')[2]}" * (len(same) > 1)


def write(path: Path) -> None:
    """Write the page: the recipe itself, its stages, their parts."""
    shared = stages.Train.__pydantic_fields__
    page = [INTRODUCTION, table(stages.Recipe), STAGES, table(stages.Train)]
    page += [table(c, but=shared if issubclass(c, stages.Train) else ()) for c in kinds()]
    page += [PARTS, *(table(cls) for cls in (*values(), YaRN))]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(page), encoding="utf-8")


def values() -> list[type]:
    """Return the classes that a stage's keys hold, without those that others only build on."""
    found = [cls for module in MODULES for cls in described(module)]
    bases = {base for cls in [*found, *kinds()] for base in cls.__mro__[1:]}
    return [cls for cls in found if cls not in bases and cls not in kinds()]


def kinds() -> list[type]:
    """Return the stage classes in the order in which a recipe runs them."""
    return list(stages.KINDS.values())
