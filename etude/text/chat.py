"""Conversations as strings, as ids with loss masks, and as prompts, in any system's format."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from etude.errors import EtudeError, closest
from etude.text import template
from etude.text.format import Chat, Format, Piece, Tools, normalise
from etude.text.glm45 import GLM45
from etude.text.kimi_k2 import KimiK2
from etude.text.minimax_m1 import MiniMaxM1
from etude.text.nemotron3 import Nemotron3
from etude.text.tokenizer import Tokenizer

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (GLM45(), MiniMaxM1(), KimiK2(), KimiK2(thinks=True), Nemotron3())
}
PLAIN = ("<|endoftext|>",)  # special tokens of a model that only continues text, as GPT-2's


class Encoded(NamedTuple):
    """A conversation for training.

    Attributes:
        ids: token ids, as long as `mask`.
        mask: true where the token is a target; it says nothing of the token's own successor.
    """

    ids: list[int]
    mask: list[bool]


def format_of(name: str | Format | None) -> Format:
    """The format of a system; one that was made with other options is its own.

    Raises:
        EtudeError: no format has that name, or the system has none (None).
    """
    if isinstance(name, Format):
        return name
    if name is None:
        found = "this system has no chat format: it continues text"
        raise EtudeError("chat", found, do="give it text (`etude.generate`), not messages")
    if name not in FORMATS:
        raise EtudeError("format", repr(name), " | ".join(FORMATS), closest(name, FORMATS))
    return FORMATS[name]


def new_tokenizer(
    texts: Iterable[str], vocab: int, *, format: str | Format | None = "glm45"
) -> Tokenizer:
    """Train a vocabulary with a system's special tokens and template; see `Tokenizer.train`.

    A system without a chat format (None) gets the token that ends a document, and no template.
    """
    if format is None:
        return Tokenizer.train(texts, vocab, PLAIN)
    of = format_of(format)
    return Tokenizer.train(texts, vocab, of.special, kept=of.kept, template=of.template())


def render(
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool | None = None,
    generation_prompt: bool = False,
    format: str | Format | None = "glm45",
) -> str:
    """Write a conversation as the system's published template does.

    Args:
        messages: dictionaries with `role` (system, user, assistant, tool) and `content`; a turn of
            the model may have `reasoning_content` and `tool_calls`, whose arguments are a
            dictionary or a JSON string.
        tools: function schemas in the shape of OpenAI's API.
        thinking: whether the model is asked to think; None as the system does by itself.
        generation_prompt: whether to open the model's next turn.
        format: name in `FORMATS`, or a format made with other options.

    Raises:
        EtudeError: a message has another shape, and it is named; or a generation prompt asks for a
            mode that the system has not.
    """
    of = format_of(format)
    mode = asked(of, thinking) if generation_prompt else _mode(of, thinking)
    pieces = list(of.pieces(normalise(messages), tools=tools, thinking=mode))
    if generation_prompt:
        pieces += of.opening(thinking=mode)
    return "".join(piece.text for piece in pieces)


def opened(*, thinking: bool | None = None, format: str | Format | None = "glm45") -> bool:
    """Whether a generation prompt ends inside the reasoning, for `turns.Turns`.

    Raises:
        EtudeError: the system has no such mode.
    """
    of = format_of(format)
    tags = [p.text for p in of.opening(thinking=asked(of, thinking)) if p.marker]
    return of.syntax.think is not None and tags[-1:] == [of.syntax.think[0]]


def _mode(of: Format, thinking: bool | None) -> bool:
    return of.modes[0] if thinking is None else thinking


def asked(of: Format, thinking: bool | None) -> bool:
    """Return the mode of a generation prompt; None is the system's own.

    Raises:
        EtudeError: the system has no such mode.
    """
    mode = _mode(of, thinking)
    if mode not in of.modes:
        found = f"{'on' if mode else 'off'}, and {of.name} {'never' if mode else 'always'} thinks"
        raise EtudeError("thinking", found, do=f"ask with thinking {'off' if mode else 'on'}")
    return mode


def render_template(
    source: str,
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool | None = None,
    generation_prompt: bool = False,
) -> str:
    """The same from the source of a Jinja template, in a sandbox.

    A template that is not told whether to think (None) does as it does by itself.

    Raises:
        EtudeError: a message has another shape, or the template fails; see
            `template.render_template`.
    """
    return template.render_template(
        source,
        normalise(messages),
        tools=[dict(t) for t in tools] if tools else None,
        add_generation_prompt=generation_prompt,
        **({} if thinking is None else {"enable_thinking": thinking}),
    )


def encode(
    tokenizer: Tokenizer,
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool | None = None,
    train: Literal["assistant", "reply", "last", "all"] = "assistant",
    format: str | Format | None = "glm45",
) -> Encoded:
    """Ids of a conversation and the tokens to train on.

    The ids are those of `render`, except that only the format's own markers become special tokens:
    a `<|user|>` inside a message stays text. If the conversation ends with the model's turn in a
    format whose turns the next role token ends, that token is added.

    What trains is what the model would have written itself, up to and including the token that ends
    its turn: all that follows the generation prompt of the mode, so think tags train where the
    model writes them and not where the prompt holds them. Where earlier reasoning is erased by the
    format, the empty tags left in its place do not train, the content does: use "last" if content
    must not be learned without the reasoning that led to it.

    Args:
        tokenizer: vocabulary with the format's markers; a tag it lacks (never a role token) is
            written as text.
        messages: see `render`.
        tools: see `render`.
        thinking: see `render`.
        train: "assistant" for all turns of the model, "reply" for those behind the last user
            message, "last" for the last one, "all" for every token.
        format: see `render`.

    Raises:
        EtudeError: a message has another shape, a role token is not in the vocabulary, or there is
            reasoning and the system never thinks.
    """
    of, chat = format_of(format), normalise(messages)
    if train not in ("assistant", "reply", "last", "all"):
        raise EtudeError("train", repr(train), "assistant | reply | last | all")
    for i, message in enumerate(chat):
        if True not in of.modes and message.get("reasoning_content", "").strip():
            where, found = f"messages[{i}].reasoning_content", f"{of.name} never thinks"
            raise EtudeError(where, found, do="leave it out; in a recipe: thinking 0")
    pieces = list(of.pieces(chat, tools=tools, thinking=_mode(of, thinking)))
    if chat and chat[-1]["role"] == "assistant" and not of.closed:
        pieces.append(Piece(of.terminator(chat[-1]), marker=True, turn=len(chat) - 1))
    ends = {role: i for i, role in enumerate(m["role"] for m in chat)}
    first = {"assistant": 0, "reply": ends.get("user", 0), "last": ends.get("assistant", 0)}

    def learns(piece: Piece) -> bool:
        return train == "all" or piece.turn >= first[train]

    encoded = Encoded([], [])
    for trained, group in groupby(pieces, learns):
        ids = _ids(tokenizer, group, of)
        encoded.ids.extend(ids)
        encoded.mask.extend([trained] * len(ids))
    return encoded


def prompt(
    tokenizer: Tokenizer,
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool | None = None,
    format: str | Format | None = "glm45",
) -> list[int]:
    """Ids from which the model writes its next turn; arguments and errors as in `render`."""
    of = format_of(format)
    mode = asked(of, thinking)
    pieces = list(of.pieces(normalise(messages), tools=tools, thinking=mode))
    return _ids(tokenizer, [*pieces, *of.opening(thinking=mode)], of)


def observation(
    tokenizer: Tokenizer,
    results: Sequence[str | Mapping[str, Any]],
    *,
    thinking: bool | None = None,
    format: str | Format | None = "glm45",
) -> list[int]:
    """Ids to append to a running context whose last turn the model has ended itself.

    Appending keeps every sampled token as it was sampled; writing the conversation out and encoding
    it again would not.

    Args:
        tokenizer: see `encode`.
        results: texts, or tool messages, in which some formats need the `tool_call_id` or the
            `name` of what was called; or what the user says next, alone.
        thinking: see `render`.
        format: see `render`.

    Raises:
        EtudeError: a format misses the id of a call, or as in `encode`.
    """
    of = format_of(format)
    told = [r if isinstance(r, Mapping) else {"role": "tool", "content": r} for r in results]
    if any(message["role"] == "user" for message in told):
        pieces = _said(of, told, thinking=asked(of, thinking))
    else:
        pieces = [Piece(of.after), *of.results(normalise(told))]
    return _ids(tokenizer, [*pieces, *of.opening(thinking=asked(of, thinking))], of)


def _said(of: Format, messages: list[Mapping[str, Any]], *, thinking: bool) -> list[Piece]:
    """What a conversation has more when the user goes on, behind the token that ended the turn."""
    begun = normalise([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    known = list(of.pieces(begun, tools=None, thinking=thinking))
    more = list(of.pieces([*begun, *normalise(messages)], tools=None, thinking=thinking))
    rest = more[len(known) :]
    # where a role token ends the turn, the model has sampled the one that begins the user's
    return [Piece(of.after), *rest] if of.closed else rest[1:]


def stop_ids(tokenizer: Tokenizer, format: str | Format | None = "glm45") -> list[int]:
    """Ids that end the model's turn; without a chat format (None), a document."""
    stops = PLAIN if format is None else format_of(format).stops
    return [tokenizer.id(name) for name in stops]


def _ids(tokenizer: Tokenizer, pieces: Iterable[Piece], of: Format) -> list[int]:
    """Markers by name; the text between two of them as one string, for merges cross pieces."""
    ids: list[int] = []
    for marker, text in _joined(tokenizer, pieces, of):
        ids.extend([tokenizer.id(text)] if marker else tokenizer.encode(text))
    return ids


def _joined(
    tokenizer: Tokenizer, pieces: Iterable[Piece], of: Format
) -> Iterator[tuple[bool, str]]:
    def is_token(piece: Piece) -> bool:
        """Of a poor vocabulary: without a role token it is an error, without a tag it is not."""
        return piece.marker and (piece.text not in of.kept or piece.text in tokenizer.special)

    for marker, group in groupby(pieces, is_token):
        texts: list[Any] = [piece.text for piece in group]
        yield from ((True, text) for text in texts) if marker else [(False, "".join(texts))]
