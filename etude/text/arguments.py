"""Arguments of tool calls: raw text to values, by the schema of the tool.

A format that writes strings without quotes cannot say whether `2` is a number or a string; the
schema can.
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from etude.errors import EtudeError
from etude.text.format import Call, Malformed, Raw, Tools

TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
    "string": (str,),
}


class Schemas:
    """The tools on offer, by name; None for tools means that anything may be called.

    Args:
        tools: their schemas.
        words: values that the format does not write as JSON, by their spelling.
    """

    def __init__(self, tools: Tools, words: Mapping[str, Any] | None = None) -> None:
        self._parameters: dict[str, dict[str, Any]] | None = None
        self._words = words or {}
        if tools is not None:
            functions = [tool.get("function", tool) for tool in tools]
            if not all(isinstance(f.get("name"), str) for f in functions):
                raise EtudeError("tools", "one without a name", "{function: {name, parameters}}")
            self._parameters = {f["name"]: f.get("parameters") or {} for f in functions}

    def read(self, raw: Raw) -> tuple[Call, list[str]]:
        """A call from its parts, and what the schema finds wrong with it.

        Raises:
            Malformed: no name, an argument given twice, or one that is not the JSON its schema asks
                for.
        """
        if not raw.name:
            raise Malformed("no name")
        name = self._known(raw)
        known = self._parameters is None or name in self._parameters
        schema = (self._parameters or {}).get(name, {})
        properties = schema.get("properties", {})
        arguments: dict[str, Any] = {}
        if isinstance(raw.arguments, dict):
            for key, value in raw.arguments.items():
                arguments[key] = _checked(key, value, _types(properties.get(key, {})))
        else:
            for key, text in raw.arguments:
                if key in arguments:
                    raise Malformed(f"argument {key!r} given twice")
                arguments[key] = self._value(key, text, _types(properties.get(key, {})))
        wrong = [raw.fault] if raw.fault else []
        wrong += [] if known else [f"unknown tool {name!r}"]
        if known and self._parameters is not None:
            wrong += [f"{name}: unknown argument {k!r}" for k in arguments if k not in properties]
            wrong += [
                f"{name}: argument {k!r} missing"
                for k in schema.get("required", ())
                if k not in arguments
            ]
        return Call(name, arguments, raw.id), wrong

    def _known(self, raw: Raw) -> str:
        """The name; where it is at fault, the longest of a tool on offer that stands in the id."""
        if not raw.fault or self._parameters is None or raw.name in self._parameters:
            return raw.name
        inside = [name for name in self._parameters if name and name in raw.id]
        return max(inside, key=len, default=raw.name)

    def _value(self, key: str, raw: str, types: list[str]) -> Any:
        """Raw text where the schema allows a string; else JSON of its type, if it names one."""
        if "string" in types:
            return raw
        if types and raw in self._words:
            return _checked(key, self._words[raw], types)
        try:
            value = json.loads(raw, parse_constant=_refuse)
        except (ValueError, RecursionError):
            if not types:
                return raw
            raise Malformed(f"argument {key!r} is not JSON of type {' or '.join(types)}") from None
        return _checked(key, value, types)


def _types(schema: dict[str, Any]) -> list[str]:
    named = schema.get("type")
    return [named] if isinstance(named, str) else list(named or ())


def _checked(key: str, value: Any, types: list[str]) -> Any:
    """The value, if it has one of the types."""
    allowed = [t for name in types for t in TYPES.get(name, (object,))]
    whole = (
        isinstance(value, float) and value.is_integer() and "integer" in types
    )  # 2.0 is an integer of JSON schema
    if types and not whole and not any(_is(value, t) for t in allowed):
        raise Malformed(f"argument {key!r} is not of type {' or '.join(types)}")
    return value


def _is(value: object, kind: type) -> bool:
    """`isinstance`, but a truth value is no number."""
    return isinstance(value, kind) and (kind in (bool, object) or not isinstance(value, bool))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
