"""The chat format of MiniMax-M1: sentences in two tokens, all other marks plain text.

Distinct here: only the ends of a turn are special tokens; `<think>` and `<tool_calls>` are letters
like any other. The model always thinks and no prompt holds its tag. All system messages stand first
and as one; the calls of a turn stand in one block, a JSON object a line. Nothing is erased: old
reasoning is what the caller leaves in. The released template takes content as parts and writes a
tool's message from parts with `name` and `text`; a run of such messages is the same turn here. It
leaves calls to the content, in the words that stand here.

The keys of the instruction come without quotes, for the release doubles single quotes around them,
which Jinja reads as the end of one string and the start of the next. The guide of the release shows
them in double quotes: `MiniMaxM1(quoted=True)`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

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

START, END = "<beginning_of_sentence>", "<end_of_sentence>"
TOOLS_AFTER = """</tools>

If you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide \
tool-name and json-object of arguments, following the format below:
<tool_calls>
{KEYS}
...
</tool_calls>"""
BARE = "{name: <tool-name-1>, arguments: <args-json-object-1>}"
QUOTED = '{"name": <tool-name-1>, "arguments": <args-json-object-1>}'


class MiniMaxM1(Format):
    """The format.

    Args:
        quoted: whether the keys of the instruction stand in double quotes.
    """

    name = source = "minimax_m1"
    special = ("<end_of_document>", "<begin_of_document>", START, END)
    kept = ()
    stops = (END, "<end_of_document>")
    syntax = Syntax(
        think=("<think>", "</think>"), call=("<tool_calls>", "</tool_calls>"), ends=(END, END)
    )
    modes = (True,)
    closed = True
    after = "\n"

    def __init__(self, *, quoted: bool = False) -> None:
        self.quoted = quoted

    def settings(self) -> dict[str, Any]:
        """`quoted`, where it is asked for."""
        return {"quoted": True} if self.quoted else {}

    def pieces(self, messages: Chat, *, tools: Tools, thinking: bool) -> Iterator[Piece]:
        """Write the conversation; a turn of the model is its own behind its first line."""
        yield Piece("<begin_of_document>", marker=True)
        system = "".join(m["content"] for m in messages if m["role"] == "system")
        if system:
            yield from _sentence("system ai_setting=assistant", system)
        if tools:
            yield from _sentence("system tool_setting=tools", self._tools(tools))
        _, told = answered(messages, lambda call, _: call["function"]["name"])
        run: list[Mapping[str, Any]] = []
        for i, message in enumerate(messages):
            role = message["role"]
            if role == "tool":
                name = message.get("name", told[i])
                run.append({"name": name, "content": message["content"]})
            elif role != "system":
                yield from self.results(run)
                run = []
                if role == "user":
                    yield from _sentence("user name=user", message["content"])
                else:
                    yield from _sentence("ai name=assistant", _reply(message), turn=i)
        yield from self.results(run)

    def opening(self, *, thinking: bool) -> Iterator[Piece]:
        """The first line of a turn."""
        yield from (Piece(START, marker=True), Piece("ai name=assistant\n"))

    def results(self, messages: Chat) -> Iterator[Piece]:
        """All results in one turn, each with the name of its tool.

        A running context has no calls to look at: there the name of the tool may stand as the id of
        the call, for calls have no other id here.
        """
        if messages:
            yield from _sentence("tool name=tools", "".join(map(_result, messages)))

    def split(self, body: str) -> list[str]:
        """One call a line."""
        return [line for line in body.split("\n") if line.strip()] or [""]

    def read_call(self, text: str) -> Raw:
        """Read `{"name": ..., "arguments": {...}}`."""
        if not text:
            raise Malformed("no call between the tags")
        call = read_object(text)
        name, arguments = call.get("name"), call.get("arguments", {})
        if isinstance(arguments, str):
            arguments = read_object(arguments)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise Malformed("a name and an object of arguments expected")
        return Raw(name, arguments)

    def _tools(self, tools: Tools) -> str:
        lines = "".join(f"{as_json(t.get('function') or t)}\n" for t in tools or ())
        after = TOOLS_AFTER.replace("{KEYS}", QUOTED if self.quoted else BARE)
        return f"You are provided with these tools:\n<tools>\n{lines}{after}"


def _sentence(head: str, text: str, *, turn: int = -1) -> Iterator[Piece]:
    yield from (Piece(START, marker=True), Piece(f"{head}\n"), Piece(text, turn=turn))
    yield from (Piece(END, marker=True, turn=turn), Piece("\n"))


def _reply(message: Mapping[str, Any]) -> str:
    """Reasoning, content and calls of a turn."""
    reasoning, content = (message.get("reasoning_content") or "").strip(), message["content"]
    text = f"<think>\n{reasoning}\n</think>\n{content}" if reasoning else content
    calls = [as_json(call["function"]) for call in message.get("tool_calls", ())]
    if not calls:
        return text
    block = "\n".join(["<tool_calls>", *calls, "</tool_calls>"])
    return f"{text}\n{block}" if content else text + block


def _result(message: Mapping[str, Any]) -> str:
    name = message.get("name") or message.get("tool_call_id")
    head = f"tool name: {name}\n" if name else ""
    return f"{head}tool result: {message['content']}\n\n"
