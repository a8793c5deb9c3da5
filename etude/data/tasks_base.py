"""What a task family is: questions with a checkable answer, at levels of difficulty."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from etude.data.tools import Tool, bind


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call of a worked solution and what the tool answers."""

    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        family: name of the family that made it and scores it.
        level: difficulty, from 0.
        question: what the user writes, the same with and without thinking.
        answer: a reply that scores 1.
        steps: written reasoning that leads there; empty where the family has none.
        tools: names of the tools that come with the question.
        calls: the tool calls of a worked solution, in order, one a turn.
        data: what scoring needs besides the answer, e.g. rules, tests, or the pages that `lookup`
            opens.
        key: what the held-out split hashes; the question unless several questions share one
            problem.
    """

    family: str
    level: int
    question: str
    answer: str
    steps: str = ""
    tools: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    def toolset(self) -> list[Tool]:
        """Return the item's tools, ready to be called."""
        return bind(self.tools, self.data.get("pages"))


class Reply(Protocol):
    """A parsed assistant turn; only its visible text is scored."""

    content: str


class Family(Protocol):
    """Questions of one kind.

    Attributes:
        name: as in recipes.
        levels: difficulties, 0 to `levels - 1`.
    """

    name: str
    levels: int

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a question of this level; `rng` decides everything."""
        ...

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 for a right reply and 0 for any other."""
        ...


def visible(reply: Reply | str) -> str:
    """Return what the user sees of a reply: its text behind any thinking, without outer spaces."""
    text = reply if isinstance(reply, str) else reply.content or ""
    return text.rpartition("</think>")[2].strip()


class Exact:
    """Scores a reply by equality with the answer."""

    def score(self, item: Item, reply: Reply | str) -> float:
        """Return 1 if the visible text is the answer, else 0."""
        return float(visible(reply) == item.answer)
