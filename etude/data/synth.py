"""Derived sets, by the names that recipes use: what mid-training reads beside the corpus.

| name | made of | spans |
|-|-|-|
| `repository` | code | the files of a package in one context |
| `commits` | code, fetched releases | issue, code, repair and test in one context |
| `traces` | own tasks, reasoning-gym | question, steps, answer |
| `agent` | own tasks, tools | conversations with tool calls |
| `long` | every domain | documents above a length |
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Protocol

from etude.data.documents import Document
from etude.data.synth_agent import agent
from etude.data.synth_chats import Chat, sft, solution
from etude.data.synth_commits import commits
from etude.data.synth_fim import fim
from etude.data.synth_long import long
from etude.data.synth_repository import RECORDS, repository
from etude.data.synth_traces import traces
from etude.data.synth_vocabulary import vocabulary
from etude.errors import EtudeError, closest

__all__ = [
    "DERIVED",
    "Chat",
    "agent",
    "commits",
    "derive",
    "fim",
    "long",
    "repository",
    "sft",
    "solution",
    "traces",
    "vocabulary",
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
    "long": lambda corpus, split, count, seed: islice(long(_all(corpus, split)), count),
}


def derive(name: str, corpus: Texts, count: int, seed: int, *, split: str = "train") -> Made:
    """Yield up to `count` documents (for `agent`: conversations) of a derived set.

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
