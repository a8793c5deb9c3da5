"""Conversations of several questions, one sample per question, and reasoning that is cut short.

How Nemotron 3 prepares its fine-tuning data (arXiv:2512.20848, section 3; the report does not say
how a budget is drawn: here every share of the tokens is equally likely). Leaving the reasoning out
of a tenth of the samples is `thinking: 0.9` of a recipe.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from etude.data.synth_chats import Chat
from etude.recipe.parts import Chats


def arranged(chats: Iterable[Chat], how: Chats, seed: int) -> Iterator[Chat]:
    """Join, split and cut conversations as a stage asks.

    Args:
        chats: one question each, with its answer.
        how: `turns`, `split` and `budget`.
        seed: decides how many are joined, what is cut, and where.
    """
    rng = random.Random(f"turns {seed}")
    longer = joined(chats, how.turns, rng) if how.turns > 1 else chats
    for chat in longer:
        for one in split(chat) if how.split else (chat,):
            cut = reasons(one.messages[-1]) and rng.random() < how.budget.share
            yield replace(one, kept=rng.random()) if cut else one


def joined(chats: Iterable[Chat], most: int, rng: random.Random) -> Iterator[Chat]:
    """Yield conversations of 1 to `most` of the given ones, in order; one with tools stays alone.

    Args:
        chats: conversations; those that are joined are all asked to think, or all not.
        most: how many at most.
        rng: decides how many.
    """
    held: Chat | None = None
    count = wanted = 0
    for chat in chats:
        fits = held is not None and not chat.tools and chat.thinking == held.thinking
        if held is not None and fits and count < wanted:
            held, count = replace(held, messages=[*held.messages, *chat.messages]), count + 1
            continue
        if held is not None:
            yield held
        held, count = chat, 1
        wanted = 1 if chat.tools else rng.randint(1, most)
    if held is not None:
        yield held


def split(chat: Chat) -> list[Chat]:
    """Return a sample per question, if there is reasoning before the last one; else the chat.

    Each ends with the answer to its own question, which alone is learnt, and holds no earlier
    reasoning: as the chat will look when the model is asked.
    """
    messages = chat.messages
    asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not asked or not any(map(reasons, messages[: asked[-1]])):
        return [chat]
    ends = [*asked[1:], len(messages)]
    return [
        replace(chat, messages=[*map(_bare, messages[:first]), *messages[first:end]], train="reply")
        for first, end in zip(asked, ends, strict=True)
    ]


def reasons(message: dict[str, Any]) -> bool:
    """Whether a message holds reasoning."""
    return bool(message.get("reasoning_content"))


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "reasoning_content"}
