"""Documents and conversations to token ids, ready for `TokenSet.write`."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from etude.data.documents import Document
from etude.data.synth_chats import Chat
from etude.data.synth_fim import fim
from etude.text import chat
from etude.text.tokenizer import Tokenizer

BATCH = 256  # documents encoded at once


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    fim_rate: float = 0.0,
    seed: int = 0,
    end: str | None = None,
) -> Iterator[tuple[list[int], None]]:
    """Yield the ids of each document and the token that ends it; every token is a target.

    Args:
        tokenizer: vocabulary with `end` and, for code, the three fill-in-the-middle markers.
        documents: texts; a special token's name inside one stays text.
        fim_rate: share of the `code` documents rewritten as fill-in-the-middle.
        seed: of which documents, and where they are cut.
        end: special token that ends a document; None takes the vocabulary's own.

    Raises:
        EtudeError: the vocabulary lacks a marker.
    """
    rng, source = random.Random(seed), iter(documents)
    stop = tokenizer.id(end or tokenizer.end)
    while batch := list(islice(source, BATCH)):
        rows = [fim(d.text, rng, fim_rate if d.domain == "code" else 0.0) for d in batch]
        texts = iter(tokenizer.encode_batch([p.text for row in rows for p in row if not p.marker]))
        for row in rows:
            ids: list[int] = []
            for piece in row:
                ids += [tokenizer.id(piece.text)] if piece.marker else next(texts)
            yield [*ids, stop], None


def encode_chats(
    tokenizer: Tokenizer,
    chats: Iterable[Chat],
    *,
    train: Literal["all"] | None = None,
    format: str | None = "glm45",
    learn_end: bool = False,
) -> Iterator[tuple[Sequence[int], Sequence[bool]]]:
    """Yield the ids of each conversation and which of them are targets (`etude.text.chat.encode`).

    Args:
        tokenizer: vocabulary with the format's markers.
        chats: conversations.
        train: "all" for mid-training on whole trajectories; None as each conversation says.
        format: name in `etude.text.chat.FORMATS`.
        learn_end: whether what closes a reasoning that was cut is a target.

    Raises:
        EtudeError: the system has no chat format (None), or as `etude.text.chat.encode`.
    """
    of = chat.format_of(format)
    for one in chats:
        told = one.messages if one.kept is None else _cut(tokenizer, one.messages, one.kept)
        coded = chat.encode(
            tokenizer,
            told,
            tools=one.tools or None,
            thinking=one.thinking,
            train=train or one.train,
            format=of,
        )
        if one.kept is not None and not learn_end and of.syntax.think:
            _unlearn(coded, tokenizer, of.syntax.think[1])
        yield coded.ids, coded.mask


def _cut(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], kept: float
) -> list[dict[str, Any]]:
    """Messages whose last reasoning stops after a share of its tokens, at least one."""
    at = max(i for i, message in enumerate(messages) if message.get("reasoning_content"))
    ids = tokenizer.encode(messages[at]["reasoning_content"])
    left = tokenizer.decode_bytes(ids[: max(1, int(kept * len(ids)))]).decode(errors="ignore")
    cut = {**messages[at], "reasoning_content": left}
    return [*messages[:at], cut, *messages[at + 1 :]]


def _unlearn(coded: chat.Encoded, tokenizer: Tokenizer, tag: str) -> None:
    """Take the last learnt tag, and the white space before it, out of the targets."""
    close = tokenizer.id(tag)
    learnt = (i for i, id_ in enumerate(coded.ids) if id_ == close and coded.mask[i])
    at = max(learnt, default=-1)
    while at >= 0 and (coded.ids[at] == close or not tokenizer.decode([coded.ids[at]]).strip()):
        coded.mask[at] = False
        at -= 1
