"""The chat format of GLM-4.5 and 4.6: roles without end tokens, tool calls in tags, not JSON.

Distinct here: a turn ends where the next role token starts, so the model must learn to write that
token itself; reasoning of turns before the last user message is erased; `/nothink` behind a user
message, and an empty pair of think tags in the generation prompt, turn thinking off. String
arguments stand raw between tags, so code needs no escapes (arXiv:2508.06471, section 3.1). The
words of the tools block are those of the released template.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etude.text.format import Chat, Format, Malformed, Piece, Raw, Syntax, Tools, as_json

TOOLS_BEFORE = """
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
TOOLS_AFTER = """</tools>

For each function call, output the function name and arguments within the following XML format:
"""

CONTROL = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>"),
)
TAGS = (
    *("/nothink", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *(
        "<tool_response>",
        "</tool_response>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    ),
)


class GLM45(Format):
    """The format; `pieces` says what a conversation is made of."""

    name = source = "glm45"
    special = CONTROL + TAGS
    kept = TAGS
    stops = ("<|endoftext|>", "<|user|>", "<|observation|>")
    syntax = Syntax(
        think=("<think>", "</think>"),
        call=("<tool_call>", "</tool_call>"),
        ends=("<|user|>", "<|observation|>"),
    )

    def pieces(self, messages: Chat, *, tools: Tools, thinking: bool) -> Iterator[Piece]:
        """Write the conversation; what the model writes carries the index of its message.

        In a turn of the model everything behind `<|assistant|>` is its own, the think tags
        included, except:
        - with thinking off the prompt already holds the empty think tags;
        - an erased reasoning leaves empty think tags that the model never wrote;
        - the next role token is its own only if it is the one that ends such a turn.
        """
        yield from (Piece("[gMASK]", marker=True), Piece("<sop>", marker=True))
        if tools:
            yield from _tools(tools)
        last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        before: Mapping[str, Any] = {"role": ""}
        for i, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if not (role == before["role"] == "tool"):
                mark = "<|observation|>" if role == "tool" else f"<|{role}|>"
                ends = before["role"] == "assistant" and mark == self.terminator(before)
                yield Piece(mark, marker=True, turn=i - 1 if ends else -1)
            if role == "assistant":
                yield from _reply(message, i, old=i < last_user, thinking=thinking)
            elif role == "tool":
                yield from self.results([message])
            elif role == "user":
                yield from _user(content, thinking=thinking)
            else:
                yield Piece(f"\n{content}")
            before = message

    def opening(self, *, thinking: bool) -> Iterator[Piece]:
        """`<|assistant|>`; with thinking off the empty think tags too."""
        yield Piece("<|assistant|>", marker=True)
        if not thinking:
            yield from _think("", turn=-1)

    def results(self, messages: Chat) -> Iterator[Piece]:
        """Each result in its own tags, all after one `<|observation|>`."""
        for message in messages:
            text = f"\n{message['content']}\n"
            yield from (Piece("\n"), Piece("<tool_response>", marker=True), Piece(text))
            yield Piece("</tool_response>", marker=True)

    def read_call(self, text: str) -> Raw:
        """Read the name, then pairs of `<arg_key>` and `<arg_value>`; blanks between are free."""
        at, pairs = text.find("<arg_key>"), []
        name = (text if at < 0 else text[:at]).strip()
        while at >= 0:
            key, at = _between(text, at, "<arg_key>", "</arg_key>")
            value, at = _between(text, at, "<arg_value>", "</arg_value>")
            pairs.append((key, value))
            at = _skip(text, at)
            at = at if at < len(text) else -1
        return Raw(name, pairs)


def _tools(tools: Sequence[Mapping[str, Any]]) -> Iterator[Piece]:
    yield Piece("<|system|>", marker=True)
    yield Piece(TOOLS_BEFORE + "".join(f"{as_json(t)}\n" for t in tools) + TOOLS_AFTER)
    example = [(f"{{arg-key-{n}}}", f"{{arg-value-{n}}}") for n in (1, 2)]
    yield from _tags("{function-name}", example, rest="...\n", turn=-1)


def _user(content: str, *, thinking: bool) -> Iterator[Piece]:
    """A trailing `/nothink` is the switch itself: a user may turn thinking off for one reply."""
    yield Piece("\n" + content.removesuffix("/nothink"))
    if not thinking or content.endswith("/nothink"):
        yield Piece("/nothink", marker=True)


def _reply(message: Mapping[str, Any], turn: int, *, old: bool, thinking: bool) -> Iterator[Piece]:
    reasoning, content = split_reasoning(message)
    erased = old and bool(reasoning)
    own = turn if thinking and not erased else -1
    yield from _think("" if old else reasoning, turn=own)
    if content:
        yield Piece("\n" + content, turn=turn)
    for call in message.get("tool_calls", ()):
        function = call["function"]
        pairs = [
            (k, v if isinstance(v, str) else as_json(v)) for k, v in function["arguments"].items()
        ]
        yield Piece("\n", turn=turn)
        yield from _tags(function["name"], pairs, rest="", turn=turn)


def _think(reasoning: str, *, turn: int) -> Iterator[Piece]:
    yield Piece("\n", turn=turn)
    yield Piece("<think>", marker=True, turn=turn)
    yield Piece(reasoning, turn=turn)
    yield Piece("</think>", marker=True, turn=turn)


def _tags(name: str, pairs: Sequence[tuple[str, str]], *, rest: str, turn: int) -> Iterator[Piece]:
    """One tool call."""
    yield Piece("<tool_call>", marker=True, turn=turn)
    yield Piece(f"{name}\n", turn=turn)
    for pair in pairs:
        for tag, text in zip(("arg_key", "arg_value"), pair, strict=True):
            yield Piece(f"<{tag}>", marker=True, turn=turn)
            yield Piece(text, turn=turn)
            yield Piece(f"</{tag}>", marker=True, turn=turn)
            yield Piece("\n", turn=turn)
    yield Piece(rest, turn=turn)
    yield Piece("</tool_call>", marker=True, turn=turn)


def split_reasoning(message: Mapping[str, Any]) -> tuple[str, str]:
    """Reasoning and content of a turn, without blanks at their ends.

    The reasoning is `reasoning_content` if it is there, else what think tags in the content hold.
    """
    reasoning, content = message.get("reasoning_content"), message["content"]
    if reasoning is None and "</think>" in content:
        before, *_, content = content.split("</think>")
        reasoning = before.split("<think>")[-1]
    return (reasoning or "").strip(), content.strip()


def _skip(body: str, at: int) -> int:
    while at < len(body) and body[at].isspace():
        at += 1
    return at


def _between(body: str, at: int, start: str, end: str) -> tuple[str, int]:
    """Text between two tags, the first of which must come next, and the place after the second."""
    at = _skip(body, at)
    if not body.startswith(start, at):
        raise Malformed(f"{start} expected before {body[at : at + 20]!r}")
    stop = body.find(end, at)
    if stop < 0:
        raise Malformed(f"{start} never closes")
    return body[at + len(start) : stop], stop + len(end)
