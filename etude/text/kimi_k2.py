"""The chat format of Kimi K2: role, word and text in five tokens, calls that are told by their ids.

Distinct here: the id of a call is the only place where its function stands, `functions.NAME:IDX`,
and IDX counts all calls of the dialogue from 0. An id of another shape in the history teaches the
model to write malformed calls, so such ids are written anew, and the results that answer them too.
Tools are declared before anything else, as JSON without blanks and with sorted keys, as the
release's tokenizer hands them to its template. A conversation without a system message gets the
release's own. K2 never thinks; K2 Thinking always does, writes the think tag itself, and keeps its
reasoning between tool calls only.

The template of K2 Thinking erases the reasoning of the last answer too where a conversation ends
with it, which is never so in a prompt. Here the answer that ends a conversation keeps it: a model
trained through the other rule would never learn to think before an answer.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etude.errors import EtudeError
from etude.text.format import (
    Chat,
    Format,
    Malformed,
    Piece,
    Raw,
    Syntax,
    Tools,
    answered,
    as_json,
    read_object,
)

SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
END, MIDDLE = "<|im_end|>", "<|im_middle|>"
SECTION = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
SINGULAR = ("<|tool_call_section_begin|>", "<|tool_call_section_end|>")  # as the report prints it
CALL, ARGUMENTS = ("<|tool_call_begin|>", "<|tool_call_end|>"), "<|tool_call_argument_begin|>"
THINK = ("<think>", "</think>")
ID = re.compile(r"functions\.(.+):\d+", re.DOTALL)


class KimiK2(Format):
    """The format.

    Args:
        thinks: whether it is that of K2 Thinking.
    """

    source = "kimi_k2"
    special = (
        *("[EOS]", "[BOS]", END, "<|im_user|>", "<|im_assistant|>", "<|im_system|>"),
        *(*SECTION, CALL[0], ARGUMENTS, CALL[1], MIDDLE, *THINK),
    )
    kept = (*SECTION, CALL[0], ARGUMENTS, CALL[1], *THINK)
    stops = (END, "[EOS]")
    closed = True

    def __init__(self, *, thinks: bool = False) -> None:
        self.thinks, self.modes = thinks, (thinks,)
        self.name = "kimi_k2_thinking" if thinks else "kimi_k2"
        self.syntax = Syntax(
            think=THINK if thinks else None,
            call=CALL,
            ends=(END, END),
            sections=(SECTION, SINGULAR),
            breaks=True,
        )

    def settings(self) -> dict[str, Any]:
        """`thinks`, for K2 Thinking."""
        return {"thinks": True} if self.thinks else {}

    def pieces(self, messages: Chat, *, tools: Tools, thinking: bool) -> Iterator[Piece]:
        """Write the conversation; a turn of the model is its own behind `<|im_middle|>`."""
        if tools:
            yield from _turn("system", "tool_declare", _declared(tools))
        if not messages or messages[0]["role"] != "system":
            yield from _turn("system", "system", SYSTEM)
        asked, told = answered(messages, _id, keeps=_is_id)
        before = range(len(messages) - 1)
        answers = [i for i in before if _answers(messages[i])]
        for i, message in enumerate(messages):
            role = message["role"]
            if role == "tool":
                yield from self.results([{**message, "tool_call_id": told[i]}])
            elif role == "assistant":
                yield from _head("assistant", message.get("name") or role)
                if self.thinks:
                    yield from _think(message, i, old=i <= max(answers, default=-1))
                yield Piece(message["content"], turn=i)
                yield from _calls(message, asked.get(i, []), turn=i)
                yield Piece(END, marker=True, turn=i)
            else:
                yield from _turn(role, message.get("name") or role, message["content"])

    def opening(self, *, thinking: bool) -> Iterator[Piece]:
        """The head of a turn; the think tag is the model's."""
        yield from _head("assistant", "assistant")

    def results(self, messages: Chat) -> Iterator[Piece]:
        """Each result in a turn of its own that names the id of the call."""
        for message in messages:
            if "tool_call_id" not in message:
                expected = "the id of the call it answers"
                raise EtudeError("tool message", "no tool_call_id", expected)
            text = f"## Return of {message['tool_call_id']}\n{message['content']}"
            yield from _turn("system", message.get("name") or "tool", text)

    def read_call(self, text: str) -> Raw:
        """Read the id, in which the name stands, and the JSON behind it."""
        id, between, body = text.partition(ARGUMENTS)
        if not between:
            raise Malformed(f"{ARGUMENTS} expected after {id.strip()[:20]!r}")
        id = id.strip()
        found = ID.fullmatch(id)
        name = found[1] if found else id.removeprefix("functions.")
        fault = "" if found else f"call id {id!r} is not functions.NAME:INDEX"
        return Raw(name, read_object(body), id, fault)


def _declared(tools: Tools) -> str:
    return json.dumps(tools, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _is_id(id: str) -> bool:
    return id.startswith("functions.") and ":" in id and id.split(":")[-1].isdigit()


def _id(call: Mapping[str, Any], count: int) -> str:
    given = call.get("id", "")
    return given if _is_id(given) else f"functions.{call['function']['name']}:{count}"


def _answers(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


def _head(role: str, word: str) -> Iterator[Piece]:
    yield from (Piece(f"<|im_{role}|>", marker=True), Piece(word), Piece(MIDDLE, marker=True))


def _turn(role: str, word: str, text: str) -> Iterator[Piece]:
    yield from _head(role, word)
    yield from (Piece(text), Piece(END, marker=True))


def _think(message: Mapping[str, Any], turn: int, *, old: bool) -> Iterator[Piece]:
    reasoning = message.get("reasoning_content") or ""
    own = -1 if old and reasoning else turn
    yield Piece(THINK[0], marker=True, turn=own)
    yield Piece("" if old else reasoning, turn=own)
    yield Piece(THINK[1], marker=True, turn=own)


def _calls(message: Mapping[str, Any], ids: list[str], *, turn: int) -> Iterator[Piece]:
    if not ids:
        return
    yield Piece(SECTION[0], marker=True, turn=turn)
    for id, call in zip(ids, message["tool_calls"], strict=True):
        yield from (Piece(CALL[0], marker=True, turn=turn), Piece(id, turn=turn))
        yield Piece(ARGUMENTS, marker=True, turn=turn)
        yield Piece(as_json(call["function"]["arguments"]), turn=turn)
        yield Piece(CALL[1], marker=True, turn=turn)
    yield Piece(SECTION[1], marker=True, turn=turn)
