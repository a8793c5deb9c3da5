"""The chat format of Nemotron 3: tools and calls in tags, a think tag that the prompt opens.

Distinct here: the generation prompt ends in `<think>` and a line break, so the model never writes
that tag; thinking off, it ends in an empty pair. Every turn of the model carries tags, and before
the last user message the reasoning between them is erased. Tools are described in tags, argument by
argument. Values of arguments stand raw, objects and lists as JSON, the rest in the words of Python
(`True`, `None`), for the release writes them so. Results of a run of calls share one user turn. A
budget for the reasoning is a line at the end of the last user message.

One thing is not as in the release, whose template forgets to open the user turn of results that
stand first.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etude.text.format import Chat, Format, Malformed, Piece, Raw, Syntax, Tools, as_json

START, END = "<|im_start|>", "<|im_end|>"
THINK, UNTHINK = "<think>", "</think>"
TAGS = (THINK, UNTHINK, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TOOLS_BEFORE = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
TOOLS_AFTER = """
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must \
be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the \
function call, but NOT after
- If there is no function call available, answer the question like normal with your current \
knowledge and do not tell the user about function calls
</IMPORTANT>"""


class Nemotron3(Format):
    """The format.

    Args:
        truncate: whether reasoning before the last user message is erased.
        budget: tokens of reasoning to ask for in the last user message; None says nothing of it.
    """

    name = source = "nemotron3"
    special = ("</s>", "<s>", START, END, *TAGS)
    kept = TAGS
    stops = (END, "</s>")
    syntax = Syntax(
        think=(THINK, UNTHINK),
        call=("<tool_call>", "</tool_call>"),
        ends=(END, END),
        words={"True": True, "False": False, "None": None},
    )
    closed = True
    after = "\n"

    def __init__(self, *, truncate: bool = True, budget: int | None = None) -> None:
        self.truncate, self.budget = truncate, budget

    def settings(self) -> dict[str, Any]:
        """The names that the release gives to both options."""
        kept = {} if self.truncate else {"truncate_history_thinking": False}
        return kept if self.budget is None else kept | {"reasoning_budget": self.budget}

    def pieces(self, messages: Chat, *, tools: Tools, thinking: bool) -> Iterator[Piece]:
        """Write the conversation.

        In a turn of the model everything behind its first tags is its own. With thinking on it
        wrote the closing tag too, unless there is no reasoning or it was erased.
        """
        first = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        yield from _turn("system", (first or "") + _tools(tools, after=bool(first)))
        last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        for i, message in enumerate(messages):
            role = message["role"]
            if role == "assistant":
                yield from (Piece(START, marker=True), Piece("assistant\n"))
                yield from _reply(message, i, self.truncate and i < last_user, thinking)
                yield from (Piece(END, marker=True, turn=i), Piece("\n"))
            elif role == "tool":
                if i == 0 or messages[i - 1]["role"] != "tool":
                    yield from self.results(list(_run(messages, i)))
            elif i or role != "system":
                asked = i == last_user and self.budget is not None
                suffix = f"\n\n{{thinking token budget: {self.budget}}}" if asked else ""
                yield from _turn(role, message["content"] + suffix)

    def opening(self, *, thinking: bool) -> Iterator[Piece]:
        """The head of a turn, and an open think tag, or an empty pair of them."""
        yield from (Piece(START, marker=True), Piece("assistant\n"), Piece(THINK, marker=True))
        yield Piece("\n") if thinking else Piece(UNTHINK, marker=True)

    def results(self, messages: Chat) -> Iterator[Piece]:
        """All results in one user turn, each in its own tags."""
        yield from (Piece(START, marker=True), Piece("user\n"))
        for message in messages:
            text = f"\n{message['content']}\n"
            yield from (Piece("<tool_response>", marker=True), Piece(text))
            yield from (Piece("</tool_response>", marker=True), Piece("\n"))
        yield from (Piece(END, marker=True), Piece("\n"))

    def read_call(self, text: str) -> Raw:
        """Read `<function=NAME>` and its parameters, whose values lie between two line breaks."""
        name, at = _named(text, 0, "<function=")
        pairs = []
        while text.startswith("<parameter=", at):
            key, at = _named(text, at, "<parameter=")
            stop = text.find("</parameter>", at)
            if stop < 0:
                raise Malformed(f"<parameter={key}> never closes")
            pairs.append((key, text[at:stop].removeprefix("\n").removesuffix("\n")))
            at = _skip(text, stop + len("</parameter>"))
        if text[at:].strip() != "</function>":
            raise Malformed(f"</function> expected before {text[at : at + 20]!r}")
        return Raw(name, pairs)


def _run(messages: Chat, start: int) -> Iterator[Mapping[str, Any]]:
    for message in messages[start:]:
        if message["role"] != "tool":
            return
        yield message


def _turn(role: str, text: str) -> Iterator[Piece]:
    yield from (Piece(START, marker=True), Piece(f"{role}\n{text}"))
    yield from (Piece(END, marker=True), Piece("\n"))


def _reply(message: Mapping[str, Any], turn: int, old: bool, thinking: bool) -> Iterator[Piece]:
    """Tags and text of a turn, as the release puts them together, then its calls."""
    reasoning, content = message.get("reasoning_content") or "", message["content"]
    calls, skip = message.get("tool_calls", ()), 0
    if reasoning.strip():
        text = f"{THINK}\n{reasoning}\n{UNTHINK}\n{content}"
        skip = len(f"{THINK}\n{reasoning}\n")  # a closing tag in there is text
    elif THINK in content or UNTHINK in content:
        text = content
    else:
        text = f"{THINK}{UNTHINK}{content}"
    whole = text
    if old and calls:
        after = text.split(UNTHINK)[-1] if UNTHINK in text else text.split(THINK)[0]
        text = f"{THINK}{UNTHINK}{after}"
    else:
        if old and THINK in text and UNTHINK in text:
            text = THINK + UNTHINK + text.split(UNTHINK)[-1]
        text = text.strip()
    erased = old and text != whole.strip()
    yield from _tagged(text, 0 if erased else skip, turn, thinking=thinking, erased=erased)
    if calls:
        yield Piece("\n", turn=turn)
    for call in calls:
        yield from _call(call["function"], turn)


def _tagged(text: str, skip: int, turn: int, *, thinking: bool, erased: bool) -> Iterator[Piece]:
    """A text with the tags at its start as markers, and what the prompt holds not the model's.

    Args:
        text: what is written.
        skip: how many letters cannot hold the closing tag.
        turn: whose it is.
        thinking: whether the prompt was the one that opens the tag.
        erased: whether a reasoning stood here; the line break behind it goes with it.
    """
    at = text.find(UNTHINK, skip)
    if not text.startswith(THINK) or at < 0:
        yield Piece(text, turn=turn)
        return
    yield Piece(THINK, marker=True)
    inside, rest = text[len(THINK) : at], text[at + len(UNTHINK) :]
    if inside:
        own = turn if thinking else -1
        yield Piece("\n" if inside.startswith("\n") else "")
        yield from (Piece(inside.removeprefix("\n"), turn=own), Piece(UNTHINK, True, own))
    else:
        yield Piece(UNTHINK, marker=True)
        if erased and rest.startswith("\n"):
            yield Piece("\n")
            rest = rest[1:]
    yield Piece(rest, turn=turn)


def _call(function: Mapping[str, Any], turn: int) -> Iterator[Piece]:
    yield Piece("<tool_call>", marker=True, turn=turn)
    lines = [f"\n<function={function['name']}>\n"]
    for key, value in function["arguments"].items():
        lines.append(f"<parameter={key}>\n{_said(value)}\n</parameter>\n")
    yield Piece("".join([*lines, "</function>\n"]), turn=turn)
    yield from (Piece("</tool_call>", marker=True, turn=turn), Piece("\n", turn=turn))


def _tools(tools: Tools, *, after: bool) -> str:
    if not tools:
        return ""
    described = "".join(_described(tool.get("function") or tool) for tool in tools)
    return ("\n\n" if after else "") + TOOLS_BEFORE + described + TOOLS_AFTER


def _described(function: Mapping[str, Any]) -> str:
    """One tool: its fields, then those of each parameter, and whatever else a schema holds."""
    parameters = function.get("parameters") or {}
    text = f"\n<function>{_field('name', function['name'])}"
    if "description" in function:
        text += _field("description", str(function["description"]).strip())
    text += "\n<parameters>"
    for name, fields in (parameters.get("properties") or {}).items():
        text += f"\n<parameter>{_field('name', name)}"
        if "type" in fields:
            text += _field("type", str(fields["type"]))
        if "description" in fields:
            text += _field("description", str(fields["description"]).strip())
        if "enum" in fields:
            text += _field("enum", as_json(fields["enum"]))
        text += _others(fields, ("name", "type", "description", "enum")) + "\n</parameter>"
    text += _others(parameters, ("type", "properties", "required"))
    if "required" in parameters:
        text += _field("required", as_json(parameters["required"]))
    text += "\n</parameters>"
    return text + _others(function, ("type", "name", "description", "parameters")) + "\n</function>"


def _others(fields: Mapping[str, Any], known: Sequence[str]) -> str:
    return "".join(_field(key, _said(v)) for key, v in fields.items() if key not in known)


def _field(key: str, text: str) -> str:
    return f"\n<{key}>{text}</{key}>"


def _said(value: object) -> str:
    return as_json(value) if isinstance(value, dict | list) else str(value)


def _named(text: str, at: int, start: str) -> tuple[str, int]:
    """The name in a tag that must come next, and the place of what stands behind it."""
    at = _skip(text, at)
    stop = text.find(">", at)
    if not text.startswith(start, at) or stop < 0:
        raise Malformed(f"{start}NAME> expected before {text[at : at + 20]!r}")
    behind = _skip(text, stop + 1) if start == "<function=" else stop + 1
    return text[at + len(start) : stop], behind


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
