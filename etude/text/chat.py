"""Conversations as strings, as ids with loss masks, and as prompts, in any system's format."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from etude.errors import EtudeError, closest
from etude.text import template
from etude.text.format import Chat, Format, Piece, Tools, normalise
from etude.text.glm45 import GLM45
from etude.text.tokenizer import Tokenizer

FORMATS: dict[str, Format] = {format.name: format for format in (GLM45(),)}


class Encoded(NamedTuple):
    """A conversation for training.

    Attributes:
        ids: token ids, as long as `mask`.
        mask: true where the token is a target; it says nothing of the token's own successor.
    """

    ids: list[int]
    mask: list[bool]


def format_of(name: str) -> Format:
    """The format of a system.

    Raises:
        EtudeError: no format has that name.
    """
    if name not in FORMATS:
        raise EtudeError("format", repr(name), " | ".join(FORMATS), closest(name, FORMATS))
    return FORMATS[name]


def new_tokenizer(texts: Iterable[str], vocab: int, *, format: str = "glm45") -> Tokenizer:
    """Train a vocabulary with a system's special tokens and template; see `Tokenizer.train`."""
    of = format_of(format)
    return Tokenizer.train(texts, vocab, of.special, kept=of.kept, template=of.template())


def render(
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool = True,
    generation_prompt: bool = False,
    format: str = "glm45",
) -> str:
    """Write a conversation as the system's published template does.

    Args:
        messages: dictionaries with `role` (system, user, assistant, tool) and `content`; a turn of
            the model may have `reasoning_content` and `tool_calls`, whose arguments are a
            dictionary or a JSON string.
        tools: function schemas in the shape of OpenAI's API.
        thinking: whether the model is asked to think.
        generation_prompt: whether to open the model's next turn.
        format: name in `FORMATS`.

    Raises:
        EtudeError: a message has another shape; it is named.
    """
    of = format_of(format)
    pieces = list(of.pieces(normalise(messages), tools=tools, thinking=thinking))
    if generation_prompt:
        pieces += of.opening(thinking=thinking)
    return "".join(piece.text for piece in pieces)


def render_template(
    source: str,
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool = True,
    generation_prompt: bool = False,
) -> str:
    """The same from the source of a Jinja template, in a sandbox.

    Raises:
        EtudeError: a message has another shape, or the template fails; see
            `template.render_template`.
    """
    return template.render_template(
        source,
        normalise(messages),
        tools=[dict(t) for t in tools] if tools else None,
        add_generation_prompt=generation_prompt,
        enable_thinking=thinking,
    )


def encode(
    tokenizer: Tokenizer,
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool = True,
    train: Literal["assistant", "last", "all"] = "assistant",
    format: str = "glm45",
) -> Encoded:
    """Ids of a conversation and the tokens to train on.

    The ids are those of `render`, except that only the format's own markers become special tokens:
    a `<|user|>` inside a message stays text. If the conversation ends with the model's turn, the
    token that ends such a turn is added.

    What trains is what the model would have written itself, up to and including the token that ends
    its turn. With thinking on that starts right behind the role token, so the think tags train;
    with thinking off the prompt holds them.
    Where earlier reasoning is erased by the format, the empty tags left in its place do not train,
        the content does: use
    "last" if content must not be learned without the reasoning that led to it.

    Args:
        tokenizer: vocabulary with the format's markers; a tag it lacks (never a role token) is
            written as text.
        messages: see `render`.
        tools: see `render`.
        thinking: see `render`.
        train: "assistant" for all turns of the model, "last" for its last one, "all" for every
            token.
        format: name in `FORMATS`.

    Raises:
        EtudeError: a message has another shape, or a role token is not in the vocabulary.
    """
    of, chat = format_of(format), normalise(messages)
    if train not in ("assistant", "last", "all"):
        raise EtudeError("train", repr(train), "assistant | last | all")
    pieces = list(of.pieces(chat, tools=tools, thinking=thinking))
    if chat and chat[-1]["role"] == "assistant":
        pieces.append(Piece(of.terminator(chat[-1]), marker=True, turn=len(chat) - 1))
    last = max((i for i, m in enumerate(chat) if m["role"] == "assistant"), default=-1)

    def learns(piece: Piece) -> bool:
        return train == "all" or (
            piece.turn >= 0 if train == "assistant" else 0 <= piece.turn == last
        )

    encoded = Encoded([], [])
    for trained, group in groupby(pieces, learns):
        ids = _ids(tokenizer, group)
        encoded.ids.extend(ids)
        encoded.mask.extend([trained] * len(ids))
    return encoded


def prompt(
    tokenizer: Tokenizer,
    messages: Chat,
    *,
    tools: Tools = None,
    thinking: bool = True,
    format: str = "glm45",
) -> list[int]:
    """Ids from which the model writes its next turn; arguments and errors as in `encode`."""
    of = format_of(format)
    pieces = list(of.pieces(normalise(messages), tools=tools, thinking=thinking))
    return _ids(tokenizer, [*pieces, *of.opening(thinking=thinking)])


def observation(
    tokenizer: Tokenizer, results: Sequence[str], *, thinking: bool = True, format: str = "glm45"
) -> list[int]:
    """Ids to append to a running context that ends with the sampled request for tool results.

    Appending keeps every sampled token as it was sampled; writing the conversation out and encoding
    it again would not.
    """
    of = format_of(format)
    return _ids(tokenizer, [*of.results(results), *of.opening(thinking=thinking)])


def stop_ids(tokenizer: Tokenizer, format: str = "glm45") -> list[int]:
    """Ids that end the model's turn."""
    return [tokenizer.id(name) for name in format_of(format).stops]


def _ids(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> list[int]:
    """Markers by name; the text between two of them as one string, for merges cross pieces."""
    ids: list[int] = []
    for marker, text in _joined(tokenizer, pieces):
        ids.extend([tokenizer.id(text)] if marker else tokenizer.encode(text))
    return ids


def _joined(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> Iterator[tuple[bool, str]]:
    def is_token(piece: Piece) -> bool:
        role = piece.text.startswith(
            "<|"
        )  # a vocabulary without its role tokens is an error, without a tag is not
        return piece.marker and (role or piece.text in tokenizer.special)

    for marker, group in groupby(pieces, is_token):
        texts: list[Any] = [piece.text for piece in group]
        yield from ((True, text) for text in texts) if marker else [(False, "".join(texts))]
