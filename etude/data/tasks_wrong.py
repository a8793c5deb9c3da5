"""Answers that are nearly right: a worked solution whose last words were changed."""

import random
import re
from dataclasses import replace

from etude.data import tasks
from etude.data.tasks import Item

TRIES = 20


def corrupted(item: Item, rng: random.Random) -> Item | None:
    """Return the item with an answer that its family scores 0; None where no small change does.

    A number is replaced by another of as many digits, two different words change places, or one
    word is written twice or left out. Reasoning and tool calls stay, so that a pair of solutions
    differs in the answer alone.

    Args:
        item: with a right answer.
        rng: decides which change.
    """
    for _ in range(TRIES):
        answer = rng.choice(CHANGES)(item.answer, rng)
        if answer.strip() and answer != item.answer and tasks.score(item, answer) == 0:
            return replace(item, answer=answer)
    return None


def _number(text: str, rng: random.Random) -> str:
    found = list(re.finditer(r"\d+", text))
    if not found:
        return text
    at = rng.choice(found)
    size = len(at[0])
    low = 10 ** (size - 1) if size > 1 else 0
    return f"{text[: at.start()]}{rng.randint(low, 10**size - 1)}{text[at.end() :]}"


def _swap(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    if len(words) > 1:
        a, b = rng.sample(range(len(words)), 2)
        words[a], words[b] = words[b], words[a]
    return " ".join(words)


def _twice(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    at = rng.randrange(len(words))
    return " ".join([*words[: at + 1], words[at], *words[at + 1 :]])


def _without(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    at = rng.randrange(len(words))
    return " ".join(words[:at] + words[at + 1 :])


CHANGES = (_number, _swap, _twice, _without)
