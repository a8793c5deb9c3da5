"""Turn the complaints of the validator into one line with the dotted key that the user wrote."""

import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from pydantic import ValidationError

import etude.recipe.engines as engines
import etude.recipe.objectives as objectives
import etude.recipe.parts as parts
import etude.recipe.rewards as rewards
from etude.errors import EtudeError, closest
from etude.recipe.stages import KINDS, Recipe

# parts of a union that no `kind` tells apart
TAGS: dict[Any, type] = {"Remote": engines.Remote, "Fleet": engines.Fleet}


def names(part: type) -> list[str]:
    """Return the keys of a description as they are written in YAML."""
    if not is_dataclass(part):
        return []
    return [getattr(f.default, "validation_alias", None) or f.name for f in fields(part)]


def explain(raw: dict[str, Any], error: ValidationError) -> EtudeError:
    """Return pydantic's first complaint as one line that addresses stages by name."""
    order = {"unexpected_keyword_argument": 0, "union_tag_invalid": 0}
    first = min(error.errors(), key=lambda e: order.get(e["type"], 1))
    where, owner = _place(raw, first["loc"])
    last = str(first["loc"][-1]) if first["loc"] else ""
    if first["type"] == "unexpected_keyword_argument":
        prefix = where.rpartition(".")[0]
        near = closest(last, owner)
        do = (
            near.replace("did you mean ", f"did you mean {prefix}." if prefix else "did you mean ")
            if near
            else f"known: {', '.join(owner)}"
        )
        return EtudeError(where, "no such field", "", do)
    if first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        tags = re.findall(r"'([^']+)'", context.get("expected_tags", ""))
        tag = str(context.get("tag"))
        key = context.get("discriminator", "kind").strip("'")
        return EtudeError(
            f"{where}.{key}",
            f"unknown {tag!r}",
            "",
            closest(tag, tags) or f"known: {', '.join(tags)}",
        )
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        found, near = repr(first["input"]), closest(str(first["input"]), known)
        return EtudeError(where, f"unknown {found}", "", near or f"known: {', '.join(known)}")
    if first["type"] == "missing":
        return EtudeError(where, "is missing", "a value")
    value, told = first.get("input"), first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(value, dict):  # of several fields together
        return EtudeError(where, told)
    shown = repr(value) if not isinstance(value, dict | list | tuple) else type(value).__name__
    return EtudeError(where, f"{shown[:60]}: {told}")


def _place(raw: Any, loc: tuple[Any, ...]) -> tuple[str, list[str]]:
    """Return the dotted key of a complaint and the names that its owner knows."""
    path: list[str] = []
    owner: type | None = Recipe
    node: Any = raw
    for step in loc:
        if isinstance(node, list | tuple) and isinstance(step, int) and step < len(node):
            node = node[step]
            if path == ["stages"]:
                named = isinstance(node, dict) and (node.get("name") or node.get("stage"))
                path = [named] if isinstance(named, str) else ["stages", str(step)]
                owner = KINDS.get(str(node.get("stage"))) if isinstance(node, dict) else None
            else:
                path.append(str(step))
        elif isinstance(node, dict) and step in node:
            node, owner = node[step], _below(owner, str(step)) or owner
            path.append(str(step))
        elif isinstance(step, str) and step in KINDS and isinstance(node, dict):
            owner = KINDS[step]
        elif step in TAGS and isinstance(node, dict):
            owner = TAGS[step]
        elif step == loc[-1] and not _is_tag(node, step):
            path.append(str(step))
        elif isinstance(node, dict) and _is_tag(node, step):
            owner = _variant(owner, str(step)) or owner
    return ".".join(path), names(owner) if owner else []


def _is_tag(node: Any, step: Any) -> bool:
    return isinstance(node, dict) and node.get("kind") == step


def _variant(owner: type | None, tag: str) -> type | None:
    for part in (*vars(parts).values(), *vars(objectives).values(), *vars(rewards).values()):
        if (
            is_dataclass(part)
            and getattr(part, "kind", None) is not None
            and repr(tag) in str(getattr(part, "__annotations__", {}).get("kind", ""))
        ):
            return part  # type: ignore[return-value]
    return owner


def _below(owner: type | None, name: str) -> type | None:
    """Return the description class of a field; lists and maps count by their items."""
    if owner is None or not is_dataclass(owner):
        return None
    kinds = owner.__annotations__ if name in owner.__annotations__ else {}
    for base in owner.__mro__:
        if name in getattr(base, "__annotations__", {}):
            kinds = base.__annotations__
            break
    return _first_dataclass(kinds.get(name))


def _first_dataclass(hint: Any) -> type | None:
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    for inner in getattr(hint, "__args__", ()):
        found = _first_dataclass(inner)
        if found is not None:
            return found
    return None


def describe_stage(kind: str) -> str:
    """Return what `etude show stage KIND` prints: every key of a stage, its default and meaning.

    Raises:
        EtudeError: there is no such kind.
    """
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise EtudeError(f"stage {kind!r}", "no such kind", known, closest(kind, KINDS))
    part = KINDS[kind]
    told = _told(part)
    head = (part.__doc__ or "").splitlines()[0]
    lines = [f"stage: {kind}   {head}", ""]
    for field, key in zip(fields(part), names(part), strict=True):
        if key != "stage":
            default = _default(field)
            lines.append(f"  {key:18s} {default:22s} {told.get(field.name, '')}".rstrip())
    return "\n".join(lines)


def _told(part: type) -> dict[str, str]:
    """Return the meaning of each key, from the docstrings of a description and its bases."""
    found: dict[str, str] = {}
    for base in reversed(part.__mro__):
        text = re.sub(r"\n\s{9,}", " ", base.__doc__ or "")
        for several, meaning in re.findall(r"^ {8}([\w, ]+): (.*)$", text, re.MULTILINE):
            found |= {name.strip(): meaning for name in several.split(",")}
    return found


def _default(field: Any) -> str:
    inner = field.default
    value = getattr(inner, "default", inner)
    factory = getattr(inner, "default_factory", None)
    if factory is not None:
        return getattr(factory, "__name__", "").lower()
    if value is MISSING or repr(value) == "PydanticUndefined":
        return "(needed)"
    return "none" if value is None else str(value)
