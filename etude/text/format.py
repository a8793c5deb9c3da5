"""What a system's chat format consists of: one small subclass per system.

The subclasses are registered in `etude.text.chat`. A conversation is a list of dictionaries in the
shape of OpenAI's API. A format cuts it into pieces: markers, which become special tokens, and plain
text, which never does. Strings, ids, loss masks and the ids of a tool result all come from the same
pieces, so they cannot disagree.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from etude.errors import EtudeError

Chat = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
ROLES = ("system", "user", "assistant", "tool")


class Piece(NamedTuple):
    """A stretch of a rendered conversation.

    Attributes:
        text: what is written.
        marker: whether it is one of the format's own tokens.
        turn: index of the message whose author, the model, writes it; -1 for what the model only
            reads.
    """

    text: str
    marker: bool = False
    turn: int = -1


class Call(NamedTuple):
    """A tool call: the function's name, arguments by name, and an id where the format has one."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class Raw(NamedTuple):
    """A tool call as a reply spells it, before any schema was looked at.

    Attributes:
        name: the function's.
        arguments: pairs of a name and its raw text, or values by name where the format writes JSON.
        id: of the call, "" where the format has none.
        fault: what is wrong although the call can be read.
    """

    name: str
    arguments: list[tuple[str, str]] | dict[str, Any]
    id: str = ""
    fault: str = ""


class Malformed(Exception):
    """A tool call that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Syntax:
    """The marks by which a reply is read back.

    Attributes:
        think: tags around the reasoning; None where the model has none, and such tags are text.
        call: tags around one tool call, or around all of them (`Format.split`).
        ends: tokens that end a reply: after an answer, and after tool calls.
        sections: tags that must stand around a run of calls, in each spelling that is read; none
            where a call stands alone.
        breaks: whether a call that begins inside the reasoning ends it; if not, it is reasoning.
        words: values that the format does not write as JSON, by their spelling.
    """

    think: tuple[str, str] | None
    call: tuple[str, str]
    ends: tuple[str, str]
    sections: tuple[tuple[str, str], ...] = ()
    breaks: bool = False
    words: Mapping[str, Any] = field(default_factory=dict)


class Format(ABC):
    """One system's way to write a conversation.

    Attributes:
        name: key in `FORMATS`.
        source: stem of the template file.
        special: special tokens a new vocabulary gets, in the order of their ids; the first ends a
            document.
        kept: those of them that are text to other libraries, as the tags around reasoning; a
            vocabulary may lack them.
        stops: tokens that end generation.
        syntax: marks of a reply.
        modes: whether the model thinks: what it can be asked for, the default first.
        closed: whether each turn ends with a token of its own, which `pieces` writes; if not, the
            next role token ends it.
        after: text behind such a token.
    """

    name: str
    source: str
    special: tuple[str, ...]
    kept: tuple[str, ...]
    stops: tuple[str, ...]
    syntax: Syntax
    modes: tuple[bool, ...] = (True, False)
    closed: bool = False
    after: str = ""

    @abstractmethod
    def pieces(self, messages: Chat, *, tools: Tools, thinking: bool) -> Iterator[Piece]:
        """The conversation up to its last written letter."""

    @abstractmethod
    def opening(self, *, thinking: bool) -> Iterator[Piece]:
        """What a generation prompt adds: the start of the model's turn."""

    @abstractmethod
    def results(self, messages: Chat) -> Iterator[Piece]:
        """A run of tool results, after the token that asked for them and the text behind it."""

    def terminator(self, message: Mapping[str, Any]) -> str:
        """The token that the model writes to end this turn of its own; see `Syntax.ends`."""
        return self.syntax.ends[bool(message.get("tool_calls"))]

    @abstractmethod
    def read_call(self, text: str) -> Raw:
        """Take one tool call apart.

        Raises:
            Malformed: the text has another shape.
        """

    def split(self, body: str) -> list[str]:
        """What stands between the call tags, as one text for each call."""
        return [body]

    def settings(self) -> dict[str, Any]:
        """Variables of the template that differ from what it takes by itself."""
        return {}

    def template(self) -> str:
        """Source of the Jinja template that goes into checkpoints and says the same as `pieces`."""
        folder = Path(__file__).parent / "templates"
        source = (folder / f"{self.source}.jinja").read_text(encoding="utf-8")
        sets = (f"{{%- set {k} = {json.dumps(v)} -%}}\n" for k, v in self.settings().items())
        return "".join(sets) + source


def as_json(value: object) -> str:
    """JSON as chat templates write it: every letter as itself, spaces after `,` and `:`."""
    return json.dumps(value, ensure_ascii=False)


def read_object(text: str) -> dict[str, Any]:
    """Read a JSON object; JSON inside of a JSON string is unwrapped.

    Raises:
        Malformed: it is no JSON, no object, or a name stands in it twice.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
        if isinstance(value, str):
            value = json.loads(value, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Malformed(f"a JSON object expected, not {text.strip()[:20]!r}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise Malformed(f"argument {name!r} given twice")
        seen[name] = value
    return seen


def answered(
    messages: Chat,
    label: Callable[[Mapping[str, Any], int], str],
    keeps: Callable[[str], bool] = lambda id: False,
) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Name the calls of a conversation, and for each tool result the call that it answers.

    A result answers the open call that bears its `tool_call_id`, else the oldest open one.

    Args:
        messages: from `normalise`.
        label: the name of a call, given the call and how many came before it.
        keeps: whether an id that no call bears is a name by itself.

    Returns:
        The names of a message's calls by its index, and the name answered by the index of a result,
        "" where no call is open.
    """
    asked: dict[int, list[str]] = {}
    told: dict[int, str] = {}
    waiting: list[tuple[str, str]] = []
    count = 0
    for i, message in enumerate(messages):
        for call in message.get("tool_calls", ()):
            name, count = label(call, count), count + 1
            asked.setdefault(i, []).append(name)
            waiting.append((call.get("id", ""), name))
        if message["role"] == "tool":
            id = message.get("tool_call_id", "")
            at = next((n for n, pair in enumerate(waiting) if id and id in pair), None)
            if at is None and keeps(id):
                told[i] = id
            else:
                told[i] = waiting.pop(at or 0)[1] if waiting else ""
    return asked, told


def normalise(messages: Chat) -> list[dict[str, Any]]:
    """Check a conversation and bring it to one shape.

    Content becomes a string (None is empty, text parts are joined), a call becomes `{"function":
    {name, arguments}}` with the arguments as a dictionary, and `reasoning_content`, `name`,
    `tool_call_id` and the `id` of a call stay only where they are strings. A tool's message whose
    parts have names becomes one message for each part.

    Raises:
        EtudeError: an unknown role, content that is not text, or arguments that are not a JSON
            object.
    """
    return [_message(m, f"messages[{i}]") for i, m in enumerate(_parted(messages))]


def _parted(messages: Chat) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else ()
        named = [p for p in parts if isinstance(p, Mapping) and isinstance(p.get("name"), str)]
        if message.get("role") == "tool" and named and len(named) == len(parts):
            yield from ({**message, "name": p["name"], "content": p.get("text")} for p in named)
        else:
            yield message


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise EtudeError(f"{where}.role", repr(role), " | ".join(ROLES))
    clean: dict[str, Any] = {
        "role": role,
        "content": _text(message.get("content"), f"{where}.content"),
    }
    for key in ("reasoning_content", "name", "tool_call_id"):
        if isinstance(message.get(key), str):
            clean[key] = message[key]
    if message.get("tool_calls"):
        clean["tool_calls"] = [_call(c, f"{where}.tool_calls") for c in message["tool_calls"]]
    return clean


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [p.get("text") if isinstance(p, Mapping) else p for p in content]
        texts = [p for p in parts if isinstance(p, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise EtudeError(where, type(content).__name__, "a string, None, or a list of text parts")


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function") or call
    name, arguments = function.get("name"), function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise EtudeError(
                f"{where}.arguments", f"not JSON ({error})", "a JSON object"
            ) from error
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise EtudeError(
            where, f"{name!r} with {type(arguments).__name__}", "a name and an object of arguments"
        )
    known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return known | {"function": {"name": name, "arguments": dict(arguments)}}
