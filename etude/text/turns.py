"""Reading a reply back: one machine that tells reasoning, content and tool calls apart.

The text may come in pieces of any size. Whatever the cut, the same reply gives the same message
and, once neighbours of a kind are joined, the same events. Nothing a model writes raises: what is
wrong is listed in `problems`. Work is linear in the length of the reply.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from etude.text.arguments import Schemas
from etude.text.chat import format_of
from etude.text.format import Call, Format, Malformed, Tools, as_json

Kind = Literal["reasoning", "content", "moved", "call", "problem"]
Place = Literal["reasoning", "content", "call"]
AFTER = "text after a tool call"


class Event(NamedTuple):
    """Something that became certain.

    Attributes:
        kind: "reasoning" and "content" bring text; "call" a whole tool call; "problem" says what is
            wrong; "moved" says that all content so far was reasoning, whose opening tag was
            missing.
        text: the text, or the words of the problem.
        call: the tool call.
    """

    kind: Kind
    text: str = ""
    call: Call | None = None


@dataclass(slots=True)
class Message:
    """A reply taken apart.

    Attributes:
        reasoning: text inside the think tags, blanks at its ends removed.
        content: text outside of them and of tool calls, likewise.
        tool_calls: calls that could be read, in order, an unknown tool's too.
        problems: what broke the format, in order; empty for a well-formed reply.
        end: role token that ended the reply, "" if none was fed.
    """

    reasoning: str = ""
    content: str = ""
    tool_calls: list[Call] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    end: str = ""

    @property
    def well_formed(self) -> bool:
        """Whether nothing broke the format."""
        return not self.problems

    def chat(self) -> dict[str, Any]:
        """The message as a turn of a conversation, in the shape that `chat.render` takes."""
        turn: dict[str, Any] = {
            "role": "assistant",
            "content": self.content,
            "reasoning_content": self.reasoning,  # "" too: content may hold such tags
        }
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": c.name, "arguments": as_json(c.arguments)},
                }
                | ({"id": c.id} if c.id else {})
                for c in self.tool_calls
            ]
        return turn


class Turns:
    """The machine. It is always in the content, in the reasoning or in a call.

    A role token's name ends the reply only as its very last text; a reply may well speak of
    `<|user|>`.

    Args:
        tools: schemas of the tools on offer; an empty list makes every call unknown, None accepts
            any.
        opened: whether the prompt ends inside the reasoning, its opening tag already written.
        format: name of the chat format, or the format.
    """

    def __init__(
        self, tools: Tools = None, *, opened: bool = False, format: str | Format | None = "glm45"
    ) -> None:
        self._format = format_of(format)
        syntax, stops = self._format.syntax, self._format.stops
        self._schemas = Schemas(tools, syntax.words)
        self._think, self._unthink = syntax.think or ("", "")
        self._call, self._uncall = syntax.call
        starts = (self._call, *(opens for opens, _ in syntax.sections))
        sections = [tag for pair in syntax.sections for tag in pair]
        self._marks = {
            "reasoning": _Marks(self._unthink, *(starts if syntax.breaks else ()), stops=stops),
            "content": _Marks(*(syntax.think or ()), *syntax.call, *sections, stops=stops),
            "call": _Marks(self._uncall, stops=stops),
        }
        self._at: Place = "reasoning" if opened else "content"
        self._thought, self._called = opened, False
        self._section, self._filled = "", False
        self._rest = ""
        self._body: list[str] = []
        self._streams = {"reasoning": _Trimmed(), "content": _Trimmed()}
        self._calls: list[Call] = []
        self._problems: list[str] = []
        self._end = ""

    def feed(self, piece: str) -> list[Event]:
        """Take the next piece of the reply; a tag that has only begun is held back."""
        return list(self._feed(piece))

    def finish(self) -> list[Event]:
        """Say that the reply is over; what was held back is text after all."""
        return list(self._finish())

    @property
    def message(self) -> Message:
        """The reply as far as it has been read."""
        return Message(
            reasoning=self._streams["reasoning"].text,
            content=self._streams["content"].text,
            tool_calls=list(self._calls),
            problems=list(self._problems),
            end=self._end,
        )

    def _feed(self, piece: str) -> Iterator[Event]:
        text, at = self._rest + piece, 0
        while found := self._marks[self._at].search(text, at):
            yield from self._text(text[at : found.start()])
            at = found.end()
            yield from self._mark(found.group())
        keep = self._marks[self._at].begun(text, at)
        yield from self._text(text[at : len(text) - keep])
        self._rest = text[len(text) - keep :]

    def _finish(self) -> Iterator[Event]:
        rest, self._rest = self._rest, ""
        if rest in self._format.stops:
            self._end = rest
        else:
            yield from self._text(rest)
        if self._at == "reasoning":
            yield from self._problem(f"{self._think} never closes")
        if self._at == "call":
            yield from self._problem(f"{self._call} never closes")
        elif self._section:
            yield from self._problem(f"{self._section} never closes")
        answer, ask = self._format.syntax.ends
        if self._end == ask != answer and not self._called:
            yield from self._problem(f"{ask} without a tool call")
        if self._called and self._end not in ("", ask):
            yield from self._problem(f"{self._end} after a tool call, where {ask} belongs")

    def _text(self, text: str) -> Iterator[Event]:
        """Plain text, wherever the machine is."""
        if self._at == "call":
            self._body.append(text)
            return
        after = self._at == "content" and self._called and bool(text.strip())
        if after and self._problems[-1:] != [AFTER]:
            yield from self._problem(AFTER)
        yield from self._say(self._at, text)

    def _mark(self, mark: str) -> Iterator[Event]:
        """A tag; the machine only looks for those that mean something where it is."""
        fresh = not self._thought and not self._called
        sections = dict(self._format.syntax.sections)
        if self._at == "call":
            self._at = "content"
            yield from self._read("".join(self._body))
            return
        if self._at == "reasoning":
            self._at = "content"
            if mark == self._unthink:
                return
        if mark == self._call:
            self._at, self._body, self._called, self._filled = "call", [], True, True
            if sections and not self._section:
                yield from self._problem(f"{mark} outside of {next(iter(sections))}")
        elif mark in sections and not self._section:
            self._section, self._called, self._filled = mark, True, False
        elif self._section and mark == sections[self._section]:
            if not self._filled:
                yield from self._problem(f"no call in {self._section}")
            self._section = ""
        elif mark == self._think and fresh:
            if self._streams["content"].text:
                yield from self._problem("text before the reasoning")
            self._at, self._thought = "reasoning", True
        elif mark == self._unthink and fresh:
            yield from self._move()
        else:
            yield from self._problem(f"stray {mark}")
            yield from self._say("content", mark)

    def _move(self) -> Iterator[Event]:
        """All content so far was reasoning: only the closing tag came."""
        self._at, self._thought = "content", True
        self._streams["reasoning"], self._streams["content"] = self._streams["content"], _Trimmed()
        yield Event("moved")

    def _read(self, body: str) -> Iterator[Event]:
        for text in self._format.split(body):
            try:
                call, wrong = self._schemas.read(self._format.read_call(text))
            except Malformed as error:
                yield from self._problem(f"malformed tool call: {error}")
                continue
            self._calls.append(call)
            yield Event("call", call=call)
            for problem in wrong:
                yield from self._problem(problem)

    def _say(self, kind: Place, text: str) -> Iterator[Event]:
        if shown := self._streams[kind].add(text):
            yield Event(kind, shown)

    def _problem(self, text: str) -> Iterator[Event]:
        self._problems.append(text)
        yield Event("problem", text)


def parse(
    text: str, tools: Tools = None, *, opened: bool = False, format: str | Format | None = "glm45"
) -> Message:
    """Take a whole reply apart; arguments as for `Turns`."""
    turns = Turns(tools, opened=opened, format=format)
    turns.feed(text)
    turns.finish()
    return turns.message


class _Marks:
    """Tags to look for, and how much of a text's end may yet become a tag or be the last token."""

    def __init__(self, *marks: str, stops: tuple[str, ...]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, filter(None, marks))))
        self._starts = {mark[:n] for mark in (*marks, *stops) for n in range(1, len(mark))} | set(
            stops
        )
        self._longest = max(map(len, self._starts))

    def search(self, text: str, at: int) -> re.Match[str] | None:
        return self._pattern.search(text, at)

    def begun(self, text: str, at: int) -> int:
        """Length of the longest end of `text[at:]` that starts a tag, or is a stop."""
        longest = min(self._longest, len(text) - at)
        return next((n for n in range(longest, 0, -1) if text[len(text) - n :] in self._starts), 0)


class _Trimmed:
    """Text without the blanks at its ends, although it comes in pieces."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._blanks: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, text: str) -> str:
        """What is now certain to be shown."""
        body = text.rstrip()
        if not self._parts:
            body = body.lstrip()
        if not body:
            if self._parts:
                self._blanks.append(text)
            return ""
        shown = "".join(self._blanks) + body
        self._blanks = [text[len(text.rstrip()) :]]
        self._parts.append(shown)
        return shown
