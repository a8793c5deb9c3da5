"""Documents and conversations to token ids, ready for `TokenSet.write`."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

from etude.data.documents import Document
from etude.data.synth_chats import Chat
from etude.data.synth_fim import fim
from etude.text import chat
from etude.text.tokenizer import Tokenizer

END = "<|endoftext|>"
BATCH = 256  # documents encoded at once


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    fim_rate: float = 0.0,
    seed: int = 0,
    end: str = END,
) -> Iterator[tuple[list[int], None]]:
    """Yield the ids of each document and the token that ends it; every token is a target.

    Args:
        tokenizer: vocabulary with `end` and, for code, the three fill-in-the-middle markers.
        documents: texts; a special token's name inside one stays text.
        fim_rate: share of the `code` documents rewritten as fill-in-the-middle.
        seed: of which documents, and where they are cut.
        end: special token that ends a document.

    Raises:
        EtudeError: the vocabulary lacks a marker.
    """
    rng, stop, source = random.Random(seed), tokenizer.id(end), iter(documents)
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
    train: Literal["assistant", "last", "all"] = "assistant",
    format: str = "glm45",
) -> Iterator[tuple[Sequence[int], Sequence[bool]]]:
    """Yield the ids of each conversation and which of them are targets (`etude.text.chat.encode`).

    Args:
        tokenizer: vocabulary with the format's markers.
        chats: conversations.
        train: "assistant" for fine-tuning; "all" for mid-training on whole trajectories.
        format: name in `etude.text.chat.FORMATS`.
    """
    for one in chats:
        coded = chat.encode(
            tokenizer,
            one.messages,
            tools=one.tools or None,
            thinking=one.thinking,
            train=train,
            format=format,
        )
        yield coded.ids, coded.mask
