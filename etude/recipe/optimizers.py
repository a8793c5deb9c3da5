"""Swapping the optimizer of a recipe: in one stage, or in all that train."""

from dataclasses import fields
from typing import Any, get_args

from etude.errors import EtudeError, closest
from etude.recipe import parts

KINDS: dict[str, type] = {
    get_args(of.__annotations__["kind"])[0]: of for of in get_args(get_args(parts.Optimizer)[0])
}


def exchanged(before: Any, kind: str, where: str) -> dict[str, Any]:
    """Return an optimizer of another kind with what the two have in common.

    The rate for AdamW is the one that the other kind used on its AdamW group, if it names one.

    Args:
        before: the optimizer as plain data, or None for the default.
        kind: name of the new one.
        where: the key that asks for it.

    Raises:
        EtudeError: no such kind.
    """
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise EtudeError(where, f"unknown {kind!r}", "", closest(kind, KINDS) or f"known: {known}")
    old = before if isinstance(before, dict) else {}
    if kind == "adamw" and old.get("adam_learning_rate") is not None:
        old = {**old, "learning_rate": old["adam_learning_rate"]}
    names = {field.name for field in fields(KINDS[kind])}
    return {"kind": kind} | {k: v for k, v in old.items() if k in names and k != "kind"}


def everywhere(raw: dict[str, Any], key: str, value: Any) -> None:
    """Override `optimizer`, or a field below it, in every stage of a recipe that trains.

    Raises:
        EtudeError: no such kind, or a key that goes deeper than a field.
    """
    _, *field = key.split(".")
    if len(field) > 1:
        raise EtudeError(key, "no such field", "optimizer=KIND or optimizer.FIELD=VALUE")
    stages = raw.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        if not isinstance(stage, dict) or stage.get("stage") == "eval":
            continue
        before = stage.get("optimizer")
        if field:
            stage["optimizer"] = {**(before if isinstance(before, dict) else {}), field[0]: value}
        elif isinstance(value, str):
            stage["optimizer"] = exchanged(before, value, key)
        else:
            stage["optimizer"] = value
