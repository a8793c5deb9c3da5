"""Derived sets, by the names that recipes use: what mid-training reads beside the corpus.

| name | made of | spans |
|-|-|-|
| `repository` | code | the files of a package in one context |
| `commits` | code, fetched releases | issue, code, repair and test in one context |
| `traces` | own tasks, reasoning-gym | question, steps, answer |
| `agent` | own tasks, tools | conversations with tool calls |
| `agentic` | own tasks, tools of servers, users, judges | conversations that passed |
| `recall` | own task | pairs, and the same again in other orders |
| `maps` | own rules | letters and what a rule sends them to |
| `rephrased`, `repeated` | own facts | short texts on invented people, reworded or not |
| `episodes` | own world, users and rubric | conversations that passed |
| `long` | every domain | documents above a length |
| `document_qa` | every domain | a text, and questions about its own words |
| `long_qa` | every domain | a text with scattered facts, and questions about them |
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Protocol

from etude.data.agentic import agentic
from etude.data.documents import Document
from etude.data.synth_agent import agent
from etude.data.synth_chats import Chat, sft, solution
from etude.data.synth_commits import commits
from etude.data.synth_document_qa import document_qa
from etude.data.synth_episodes import episodes
from etude.data.synth_fim import fim
from etude.data.synth_long import long
from etude.data.synth_long_qa import long_qa
from etude.data.synth_maps import maps
from etude.data.synth_recall import recall
from etude.data.synth_rephrase import told
from etude.data.synth_repository import RECORDS, repository
from etude.data.synth_traces import traces
from etude.data.synth_turns import arranged
from etude.data.synth_vocabulary import vocabulary
from etude.errors import EtudeError, closest
from etude.recipe.parts import Chats

__all__ = [
    "DERIVED",
    "Chat",
    "agent",
    "agentic",
    "commits",
    "derive",
    "document_qa",
    "episodes",
    "fim",
    "long",
    "long_qa",
    "maps",
    "recall",
    "repository",
    "sft",
    "solution",
    "told",
    "traces",
    "vocabulary",
    "written",
]


class Texts(Protocol):
    """A corpus: documents by domain and split."""

    @property
    def domains(self) -> list[str]:
        """Names of the domains."""
        ...

    def documents(self, domain: str, split: str = "train") -> Iterator[Document]:
        """Yield the documents of one domain and split."""
        ...


def _code(corpus: Texts, split: str) -> Iterator[Document]:
    return corpus.documents("code", split) if "code" in corpus.domains else iter(())


def _all(corpus: Texts, split: str) -> Iterator[Document]:
    return (document for domain in corpus.domains for document in corpus.documents(domain, split))


def _commits(corpus: Texts, split: str, count: int, seed: int) -> Iterator[Document]:
    """Records of real releases where `etude data fetch` brought some, then seeded ones."""
    code = list(_code(corpus, split))
    real = [replace(d, domain="commits") for d in code if d.source.startswith(RECORDS)]
    return islice(chain(real, commits(code, count, seed)), count)


Made = Iterator[Document] | Iterator[Chat]

DERIVED: dict[str, Callable[[Texts, str, int, int], Made]] = {
    "repository": lambda corpus, split, count, seed: islice(
        repository(_code(corpus, split)), count
    ),
    "commits": _commits,
    "traces": lambda corpus, split, count, seed: traces(count, seed, held=split == "held_out"),
    "agent": lambda corpus, split, count, seed: agent(count, seed, held=split == "held_out"),
    "agentic": lambda corpus, split, count, seed: agentic(count, seed, held=split == "held_out"),
    "recall": lambda corpus, split, count, seed: recall(count, seed, held=split == "held_out"),
    "rephrased": lambda corpus, split, count, seed: told(
        "rephrased", count, seed, held=split == "held_out"
    ),
    "repeated": lambda corpus, split, count, seed: told(
        "repeated", count, seed, held=split == "held_out"
    ),
    "episodes": lambda corpus, split, count, seed: episodes(count, seed, held=split == "held_out"),
    "maps": lambda corpus, split, count, seed: maps(count, seed, held=split == "held_out"),
    "long_qa": lambda corpus, split, count, seed: long_qa(_all(corpus, split), count, seed),
    "document_qa": lambda corpus, split, count, seed: document_qa(_all(corpus, split), count, seed),
    "long": lambda corpus, split, count, seed: islice(long(_all(corpus, split)), count),
}


def derive(name: str, corpus: Texts, count: int, seed: int, *, split: str = "train") -> Made:
    """Yield up to `count` documents (conversations where a set is of those) of a derived set.

    Args:
        name: key of `DERIVED`.
        corpus: what it is made of.
        count: how many at most.
        seed: decides all of them.
        split: "train" or "held_out"; the two share no question and no document.

    Raises:
        EtudeError: an unknown name.
    """
    if name not in DERIVED:
        near = closest(name, DERIVED)
        raise EtudeError(f"set {name}", "no such derived set", ", ".join(DERIVED), near)
    return DERIVED[name](corpus, split, count, seed)


def written(data: Chats, seed: int) -> Iterator[Chat]:
    """Yield the conversations that a fine-tuning stage asks for, in random order of their kinds.

    Args:
        data: tasks, small talk and simulated users, how much of each, and how they are arranged.
        seed: decides all of them.

    Raises:
        EtudeError: an unknown family or level, or nothing to draw from.
    """
    simulated, agents = round(data.items * data.simulated), round(data.items * data.agentic)
    rest = data.items - simulated - agents
    if rest < 0:
        found = f"simulated {data.simulated:g} and agentic {data.agentic:g}"
        raise EtudeError("chats", found, "together at most 1")
    plain = sft(data.tasks, rest, seed, thinking=data.thinking, lines=data.lines)
    if not simulated and not agents:
        return arranged(plain, data, seed)
    kinds = (plain, episodes(simulated, seed), agentic(agents, seed))
    order = [0] * rest + [1] * simulated + [2] * agents
    random.Random(seed).shuffle(order)
    return arranged((next(kinds[kind]) for kind in order), data, seed)
