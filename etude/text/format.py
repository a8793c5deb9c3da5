"""What a system's chat format consists of: one small subclass per system.

The subclasses are registered in `etude.text.chat`. A conversation is a list of dictionaries in the
shape of OpenAI's API. A format cuts it into pieces: markers, which become special tokens, and plain
text, which never does. Strings, ids, loss masks and the ids of a tool result all come from the same
pieces, so they cannot disagree.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    """A tool call: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


class Malformed(Exception):
    """A tool call that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Syntax:
    """The marks by which a reply is read back.

    Attributes:
        think: tags around the reasoning.
        call: tags around one tool call.
        ends: role tokens that end a reply: after an answer, and after tool calls.
    """

    think: tuple[str, str]
    call: tuple[str, str]
    ends: tuple[str, str]


class Format(ABC):
    """One system's way to write a conversation.

    Attributes:
        name: key in `FORMATS`, and stem of the template file.
        special: special tokens a new vocabulary gets, in the order of their ids; the first ends a
            document.
        kept: those of them that are text to other libraries, as the tags around reasoning.
        stops: tokens that end generation.
        syntax: marks of a reply.
    """

    name: str
    special: tuple[str, ...]
    kept: tuple[str, ...]
    stops: tuple[str, ...]
    syntax: Syntax

    @abstractmethod
    def pieces(self, messages: Chat, *, tools: Tools, thinking: bool) -> Iterator[Piece]:
        """The conversation up to its last written letter."""

    @abstractmethod
    def opening(self, *, thinking: bool) -> Iterator[Piece]:
        """What a generation prompt adds: the start of the model's turn."""

    @abstractmethod
    def results(self, contents: Sequence[str]) -> Iterator[Piece]:
        """A run of tool results, after the token that asked for them."""

    @abstractmethod
    def terminator(self, message: Mapping[str, Any]) -> str:
        """The token that the model writes to end this turn of its own."""

    @abstractmethod
    def read_call(self, body: str) -> list[tuple[str, str]]:
        """Take apart what stands between the call tags.

        Returns:
            The function's name under "", then the raw text of each argument under its own.

        Raises:
            Malformed: the text has another shape.
        """

    def template(self) -> str:
        """Source of the Jinja template that goes into checkpoints and says the same as `pieces`."""
        folder = Path(__file__).parent / "templates"
        return (folder / f"{self.name}.jinja").read_text(encoding="utf-8")


def as_json(value: object) -> str:
    """JSON as chat templates write it: every letter as itself, spaces after `,` and `:`."""
    return json.dumps(value, ensure_ascii=False)


def normalise(messages: Chat) -> list[dict[str, Any]]:
    """Check a conversation and bring it to one shape.

    Content becomes a string (None is empty, text parts are joined), a call becomes `{"function":
    {name, arguments}}` with the arguments as a dictionary, and `reasoning_content` stays only where
    it is a string.

    Raises:
        EtudeError: an unknown role, content that is not text, or arguments that are not a JSON
            object.
    """
    return [_message(m, f"messages[{i}]") for i, m in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise EtudeError(f"{where}.role", repr(role), " | ".join(ROLES))
    clean: dict[str, Any] = {
        "role": role,
        "content": _text(message.get("content"), f"{where}.content"),
    }
    if isinstance(message.get("reasoning_content"), str):
        clean["reasoning_content"] = message["reasoning_content"]
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
    return {"function": {"name": name, "arguments": dict(arguments)}}
