"""`etude chat`: talk to a model in a terminal or through a pipe.

The answer appears as it is made, thinking dimmed; tools are really called. Ctrl-C stops an answer,
never the program.
"""

import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console

from etude.arch import count
from etude.errors import EtudeError, closest
from etude.text.chat import format_of, opened, prompt, stop_ids
from etude.text.format import Call
from etude.text.tokenizer import Tokenizer
from etude.text.turns import Event, Message, Turns

TOOL_TURNS = 8  # answers in a row that may call tools before the user is asked again
SMALL = 100_000_000  # parameters below which nobody should expect knowledge


class Tool(Protocol):
    """A function that the model may call."""

    @property
    def name(self) -> str:
        """As the model calls it."""
        ...

    def schema(self) -> dict[str, Any]:
        """The tool as a chat template shows it."""
        ...

    def call(self, **arguments: Any) -> str:
        """The tool's answer; a wrong call is answered, not raised."""
        ...


Stream = Callable[..., Iterator[int]]


@dataclass(slots=True)
class Speaker:
    """What an answer needs beside the conversation."""

    model: Any
    tokenizer: Tokenizer
    format: str
    stream: Stream
    stop: Collection[int]
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0


@dataclass(slots=True)
class Talk:
    """A conversation and its switches."""

    tools: Mapping[str, Tool]
    messages: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = True
    modes: tuple[bool, ...] = (True, False)
    use_tools: bool = False
    folded: bool = False
    thought: str = ""

    def schemas(self) -> list[dict[str, Any]] | None:
        """Schemas of the tools on offer, None while they are off."""
        return [tool.schema() for tool in self.tools.values()] if self.use_tools else None


def chat(
    model: Any,
    *,
    temperature: float = 0.0,
    max_tokens: int = 256,
    seed: int = 0,
    console: Console | None = None,
    lines: Iterable[str] | None = None,
    stream: Stream | None = None,
    tools: Sequence[Tool] | None = None,
) -> None:
    """Talk until the lines end or the user quits.

    Args:
        model: a decoder with a tokenizer, as `etude.load` returns it.
        temperature: 0 takes the likeliest token.
        max_tokens: longest answer, thinking included.
        seed: of sampling; each answer gets its own from it.
        console: where to write; standard output if None.
        lines: what the user says; typed or piped standard input if None.
        stream: makes the tokens of an answer; `etude.engine.generate.Talker` if None.
        tools: what `/tools` offers; the calculator if None.

    Raises:
        EtudeError: the model has no tokenizer, or its vocabulary lacks the format's role tokens.
    """
    speaker = _speaker(model, stream, temperature=temperature, max_tokens=max_tokens, seed=seed)
    offered = _calculator() if tools is None else tools
    modes = format_of(speaker.format).modes
    talk = Talk({tool.name: tool for tool in offered}, thinking=modes[0], modes=modes)
    screen = Screen(console or Console(highlight=False))
    screen.note(_welcome(model))
    for line in _typed(screen.console) if lines is None else lines:
        text = line.strip()
        if text.startswith("/") and text != "/":
            if not command(text, talk, screen):
                return
        elif text:
            try:
                answer(text, talk, speaker, screen)
            except KeyboardInterrupt:  # while a tool ran or a prompt was read
                screen.note("stopped")


def _speaker(model: Any, stream: Stream | None, **how: Any) -> Speaker:
    tokenizer = model.published.tokenizer if model.published else None
    if tokenizer is None:
        raise EtudeError("chat", "the model has no tokenizer", do="load a checkpoint that has one")
    if stream is None:
        from etude.engine.generate import Talker

        stream = Talker()
    from etude.models.table import chat_format

    name = format_of(chat_format(model.published.family, model.published.config)).name
    return Speaker(model, tokenizer, name, stream, stop_ids(tokenizer, name), **how)


def _calculator() -> list[Tool]:
    from etude.data.tools import bind

    return list(bind(("calculator",)))


def _welcome(model: Any) -> str:
    counts = count(model.arch)
    size = counts.trunk + counts.mtp
    text = f"{model.published.family}, {size:,} parameters. /help lists the commands, /quit ends."
    if size < SMALL:
        text += " A model this small knows nothing of the world; ask it what it was trained on."
    return text


def _typed(console: Console) -> Iterator[str]:
    """Lines from standard input, with a prompt where a person types them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield console.input("\n[bold]you[/] › ")
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\n/quit or Ctrl-D ends", style="dim")


# Commands -----------------------------------------------------------------------------------------


def command(text: str, talk: Talk, screen: "Screen") -> bool:
    """Obey a command; false ends the talk."""
    name = text.split()[0]
    if name not in COMMANDS:
        near = closest(name, COMMANDS)
        screen.note(f"unknown command {name}; {near or '/help lists all'}")
        return True
    does, _ = COMMANDS[name]
    if said := does(talk):
        screen.note(said)
    return name != "/quit"


def _think(talk: Talk) -> str:
    if True not in talk.modes:
        return "this system never thinks"
    talk.thinking = True
    return "thinking on"


def _nothink(talk: Talk) -> str:
    if False not in talk.modes:
        return "this system always thinks"
    talk.thinking = False
    return "thinking off"


def _tools(talk: Talk) -> str:
    talk.use_tools = not talk.use_tools
    return f"tools {'on' if talk.use_tools else 'off'}: {', '.join(talk.tools) or 'there are none'}"


def _fold(talk: Talk) -> str:
    talk.folded = not talk.folded
    return "thinking is folded" if talk.folded else talk.thought or "thinking is shown"


def _reset(talk: Talk) -> str:
    talk.messages, talk.thought = [], ""
    return "a new conversation"


def _help(talk: Talk) -> str:
    return "\n".join(f"{name:<10} {about}" for name, (_, about) in COMMANDS.items())


COMMANDS: dict[str, tuple[Callable[[Talk], str], str]] = {
    "/think": (_think, "let the model think before it answers"),
    "/nothink": (_nothink, "answer at once"),
    "/tools": (_tools, "offer tools, or stop offering them"),
    "/fold": (_fold, "hide thinking, or show it, the last one too"),
    "/reset": (_reset, "forget the conversation"),
    "/help": (_help, "this list"),
    "/quit": (lambda talk: "", "end"),
}


# Answers ------------------------------------------------------------------------------------------


def answer(text: str, talk: Talk, speaker: Speaker, screen: "Screen") -> None:
    """Say something to the model, call the tools it asks for, and show all of it.

    A conversation that the model cannot read, for it grew too long, is told, and the last thing
    said is taken back.
    """
    before = len(talk.messages)
    talk.messages.append({"role": "user", "content": text})
    for _ in range(TOOL_TURNS):
        try:
            reply, whole = _reply(talk, speaker, screen)
        except EtudeError as error:
            del talk.messages[before:]
            screen.note(f"{error}; /reset starts anew")
            return
        talk.thought = reply.reasoning
        if not whole:
            reply.tool_calls.clear()
        talk.messages.append(reply.chat())
        if not reply.tool_calls:
            return
        for call in reply.tool_calls:
            result = _call(call, talk)
            screen.result(result)
            talk.messages.append({"role": "tool", "content": result})
    screen.note(f"stopped after {TOOL_TURNS} tool calls in a row")


def _reply(talk: Talk, speaker: Speaker, screen: "Screen") -> tuple[Message, bool]:
    """One turn of the model, shown while it is made, and whether it was left to end."""
    schemas = talk.schemas()
    ids = prompt(
        speaker.tokenizer,
        talk.messages,
        tools=schemas,
        thinking=talk.thinking,
        format=speaker.format,
    )
    inside = opened(thinking=talk.thinking, format=speaker.format)
    turns = Turns(schemas or [], opened=inside, format=speaker.format)
    decoder = speaker.tokenizer.stream()
    tokens = speaker.stream(
        speaker.model,
        ids,
        max_tokens=speaker.max_tokens,
        temperature=speaker.temperature,
        seed=speaker.seed + len(talk.messages),
        stop=speaker.stop,
    )
    began, count, whole = time.monotonic(), 0, True
    screen.begin(folded=talk.folded)
    try:
        for token in tokens:
            count += 1
            screen.show(turns.feed(decoder.feed(token)))
    except KeyboardInterrupt:
        whole = False
    rest = [*turns.feed(decoder.finish()), *turns.finish()]
    screen.show(event for event in rest if whole or event.kind != "problem")
    screen.end(count, time.monotonic() - began, whole=whole)
    return turns.message, whole


def _call(call: Call, talk: Talk) -> str:
    """Run a tool; whatever goes wrong is an answer to the model, like any other."""
    if not talk.use_tools or call.name not in talk.tools:
        return f"error: no tool {call.name}"
    try:
        return talk.tools[call.name].call(**call.arguments)
    except Exception as error:  # a tool is foreign code, and the talk must go on
        return f"error: {type(error).__name__}: {error}"


class Screen:
    """Writes an answer while it is made: thinking dimmed or folded, calls and results marked."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._folded, self._last, self._hidden = False, "", 0

    def begin(self, *, folded: bool) -> None:
        """An answer starts."""
        self._folded, self._last, self._hidden = folded, "", 0

    def show(self, events: Iterable[Event]) -> None:
        """Write what has become certain."""
        for event in events:
            if event.kind == "reasoning" and self._folded:
                self._hide(len(event.text))
            elif event.kind in ("reasoning", "content"):
                self._write(event.kind, event.text)
            elif event.kind == "moved":
                self.note("that was thinking; the answer:")
            elif event.call is not None:
                pairs = ", ".join(f"{k}={v!r}" for k, v in event.call.arguments.items())
                self._line(f"→ {event.call.name}({pairs})", "cyan")
            else:
                self._line(f"format: {event.text}", "yellow")

    def result(self, text: str) -> None:
        """What a tool answered."""
        self._line(f"← {text}", "cyan")

    def note(self, text: str) -> None:
        """Something that is not part of the talk."""
        self._line(text, "dim")

    def end(self, tokens: int, seconds: float, *, whole: bool) -> None:
        """The answer is over."""
        if self._hidden:
            self.note(f"({self._hidden} letters of thinking, /fold shows them)")
        if not whole:
            self.note("stopped")
        self._line("", "")
        if self.console.is_terminal:
            self.note(f"{tokens} tokens, {tokens / max(seconds, 1e-9):.0f} a second")

    def _hide(self, letters: int) -> None:
        if not self._hidden:
            self.note("thinking …")
        self._hidden += letters

    def _write(self, kind: str, text: str) -> None:
        if self._last and self._last != kind:
            self.console.print()
        if self._last != kind and kind == "reasoning" and not self.console.is_terminal:
            text = f"thinking: {text}"  # colours do not reach a pipe
        self._last = kind
        style = "dim italic" if kind == "reasoning" else None
        self._print(text, style)

    def _line(self, text: str, style: str) -> None:
        if self._last:
            self.console.print()
            self._last = ""
        if text:
            self._print(f"{text}\n", style)

    def _print(self, text: str, style: str | None) -> None:
        """Text of a model is never markup, nor may it steer the terminal."""
        clean = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
        self.console.print(
            clean, style=style, end="", markup=False, highlight=False, emoji=False, soft_wrap=True
        )
