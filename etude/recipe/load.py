"""From a YAML file and dotted overrides to a checked `Recipe`.

Every mistake is answered with its place and the nearest name.
YAML here is version 1.2 where 1.1 surprises: `3e-3` is a number, and only `true` and `false` are
Booleans.
"""

import importlib.resources
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from etude.errors import EtudeError, closest
from etude.recipe.explain import explain, names
from etude.recipe.optimizers import everywhere, exchanged
from etude.recipe.post import Distill, Paired, Preference, RewardModel
from etude.recipe.rewards import Judge, Scalar
from etude.recipe.stages import Eval, Pretrain, Recipe, Rl, Stage, Unify

RECIPE = TypeAdapter(Recipe)
NAME = re.compile(r"[\w-][\w.-]*")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the number and Boolean rules of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in rules
        if not tag.endswith((":float", ":int", ":bool", ":timestamp"))
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)

_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(str(loader.construct_scalar(node)))
)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML text.

    Raises:
        EtudeError: the text is not YAML; the line is named.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise EtudeError(
            f"{where}{line}", f"is not YAML ({getattr(error, 'problem', error)})"
        ) from error


def shipped() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    folder = Path(str(importlib.resources.files("etude") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """Return the file of a recipe: a shipped name or a path.

    Raises:
        EtudeError: neither exists.
    """
    known = shipped()
    if name in known:
        return known[name]
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    hint = closest(name, known) or f"shipped recipes: {', '.join(known)}"
    raise EtudeError(name, "is neither a shipped recipe nor a YAML file", "", hint)


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, check and resolve a recipe.

    Args:
        name: shipped name or path of a YAML file.
        overrides: `key=value` with dotted keys; a stage is addressed by its name:
            `sft.optimizer.learning_rate=1e-3`. `optimizer=adamw` speaks of every stage that trains,
            as does `optimizer.learning_rate=1e-3`.

    Raises:
        EtudeError: unreadable file, unknown key, wrong value, unknown or misplaced stage.
    """
    path = find(name)
    raw = read_yaml(_text(path), str(path))
    if not isinstance(raw, dict):
        raise EtudeError(
            str(path), "is not a mapping", "a recipe with `recipe`, `model` and `stages`"
        )
    return read(raw, overrides)


def read(raw: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Override, check and resolve a recipe that is plain data; see `load`."""
    raw = _own(raw)
    for override in overrides:
        key, _, text = override.partition("=")
        if key.split(".")[0] == "optimizer":
            everywhere(raw, key, read_yaml(text, key))
        else:
            _override(raw, override)
    return resolve(check(raw))


def _own(node: Any) -> Any:
    """Copy plain data so that what YAML repeats by an alias can be overridden in one place."""
    if isinstance(node, dict):
        return {key: _own(value) for key, value in node.items()}
    return [_own(value) for value in node] if isinstance(node, list) else node


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise EtudeError(str(path), f"cannot be read ({why})", "a YAML file") from error


def check(raw: dict[str, Any]) -> Recipe:
    """Validate plain data as a recipe.

    Raises:
        EtudeError: the first thing that is wrong, by its dotted key.
    """
    try:
        return RECIPE.validate_python(raw)
    except ValidationError as error:
        raise explain(raw, error) from None


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise EtudeError(
            override, "is not an override", "key=value, e.g. sft.optimizer.learning_rate=1e-3"
        )
    value = read_yaml(text, key)
    *above, last = key.split(".")
    node: Any = raw
    for i, part in enumerate(above):
        node = _child(raw, node, part, ".".join(above[: i + 1]), at_top=i == 0)
    if last == "optimizer" and isinstance(value, str):
        value = exchanged(node.get(last) if isinstance(node, dict) else None, value, key)
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[_typed(node, last)] = value
    else:
        raise EtudeError(key, f"cannot go below the value {node!r}")


def _child(raw: dict[str, Any], node: Any, part: str, where: str, *, at_top: bool) -> Any:
    if at_top and part not in raw:
        stages = raw.get("stages") or []
        named = [
            s for s in stages if isinstance(s, dict) and part in (s.get("name"), s.get("stage"))
        ]
        exact = [s for s in named if s.get("name", s.get("stage")) == part]
        if len(exact or named) == 1:
            return (exact or named)[0]
        if len(named) > 1:
            several = ", ".join(s.get("name", s["stage"]) for s in named)
            raise EtudeError(where, "names several stages", "", f"address one by name: {several}")
        if part not in names(Recipe):
            known = [s.get("name", s.get("stage", "")) for s in stages if isinstance(s, dict)]
            raise EtudeError(
                where,
                "no such stage or key",
                "",
                closest(part, [*known, *names(Recipe)]) or f"stages: {', '.join(known)}",
            )
    if isinstance(node, list):
        return node[_index(node, part, where)]
    if not isinstance(node, dict):
        raise EtudeError(where, f"cannot go below the value {node!r}")
    return node.setdefault(_typed(node, part), {})


def _index(node: list[Any], part: str, where: str) -> int:
    if part.isdigit() and int(part) < len(node):
        return int(part)
    for i, item in enumerate(node):
        if isinstance(item, dict) and part in (item.get("name"), item.get("stage")):
            return i
    raise EtudeError(
        where, f"{part!r} is not in the list of {len(node)}", "an index or the name of an item"
    )


def _typed(node: dict[Any, Any], part: str) -> Any:
    return int(part) if part.isdigit() and int(part) in node else part


def resolve(recipe: Recipe) -> Recipe:
    """Fill in names and starting stages, and check every reference.

    Raises:
        EtudeError: a name is used twice, or a stage names one that does not stand before it.
    """
    called = [stage.name or stage.stage for stage in recipe.stages]
    for key, name in [("recipe", recipe.recipe), *((f"stages.{name}", name) for name in called)]:
        if not NAME.fullmatch(name):
            raise EtudeError(key, repr(name), "letters, digits and . _ -, for it names a folder")
    twice = [name for name, times in Counter(called).items() if times > 1]
    if twice:
        raise EtudeError(
            f"stages.{twice[0]}", "is the name of two stages", "", "give each its own `name`"
        )
    if "model" in called:
        raise EtudeError(
            "stages.model", "`model` stands for the recipe's own model", "another name"
        )
    stages: list[Stage] = []
    before = "model"
    for name, stage in zip(called, recipe.stages, strict=True):
        stage = replace(stage, name=name)
        if not isinstance(stage, Eval):
            # its key is `from`, so type checkers do not know the field's own name
            new = isinstance(stage, Pretrain) and stage.fresh is not None
            start: dict[str, Any] = {"start": "model" if new else stage.start or before}
            stage = replace(stage, **start)
            before = before if isinstance(stage, RewardModel) else name  # it no longer writes
        _check_references(stage, ["model", *(s.name for s in stages)], called)
        _check_writes(stage, {s.name for s in stages if isinstance(s, RewardModel)})
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def parents(stage: Stage) -> tuple[str, ...]:
    """Return the names of all stages that `stage` needs; `model` is the recipe's own model."""
    return stage.of if isinstance(stage, Eval) else (stage.start or "model", *_others(stage))


def _others(stage: Stage) -> tuple[str, ...]:
    """Stages that another learns from beside the one whose weights it starts from."""
    match stage:
        case Unify():
            return tuple(teacher.stage for teacher in stage.samples_of)
        case Distill():
            return tuple(tutor.stage for tutor in stage.teachers if tutor.stage)
        case Rl():
            teachers = stage.distill.stages if stage.distill else ()
            pull = (stage.objective.kl.reference,) if stage.objective.kl.reference else ()
            return (*teachers, *(name for name, _ in judges(stage)), *pull)
        case Paired():
            named = stage.pairs.of, stage.reference if isinstance(stage, Preference) else None
            return tuple(name for name in named if name)
    return ()


def judges(stage: Rl) -> list[tuple[str, bool]]:
    """Return the stages that reward an rl stage, and whether each scores instead of writing."""
    models = [term for term in stage.rewards if isinstance(term, Judge | Scalar)]
    return [(one.by, isinstance(one, Scalar)) for one in models if one.by != "self"]


def _check_writes(stage: Stage, scalars: set[str]) -> None:
    own = judges(stage) if isinstance(stage, Rl) else []
    for name, scores in own:
        if scores and name not in scalars:
            found = f"names stage {name!r}, which writes and does not score"
            raise EtudeError(stage.name, found, "a stage reward_model, or kind: judge")
    scored = {name for name, scores in own if scores}
    start, *others = parents(stage)
    for parent in scalars.intersection({start, *others} - (scored - {start})):
        found = f"names stage {parent!r}, a reward model, which scores and does not write"
        raise EtudeError(stage.name, found, "a stage that trains a policy")


def _check_references(stage: Stage, earlier: list[str], everywhere: list[str]) -> None:
    for parent in parents(stage):
        if parent in earlier:
            continue
        found = f"names stage {parent!r}, which "
        found += "stands after it" if parent in everywhere else "does not exist"
        do = (
            "move it up"
            if parent in everywhere
            else closest(parent, earlier) or f"known: {', '.join(earlier)}"
        )
        raise EtudeError(stage.name, found, "", do)


def dump(recipe: Recipe) -> str:
    """Return a recipe as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(as_data(recipe), sort_keys=False, allow_unicode=True, width=120)


def as_data(part: Any) -> Any:
    """Return any description as plain JSON-able data, keys as in YAML."""
    return TypeAdapter(type(part)).dump_python(part, mode="json", by_alias=True)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return RECIPE.json_schema(by_alias=True)
