"""Public corpora by hub name, streamed: rows arrive as they are read, nothing is stored whole."""

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from etude.data.documents import Document, Tally
from etude.data.folders import Columns, to_document
from etude.data.sources import Source
from etude.errors import EtudeError


@dataclass(frozen=True, slots=True)
class Public:
    """A corpus whose rows carry the text itself, and how to read them.

    Args:
        name: on the hub.
        domain: which share of the mixture it feeds.
        licence: of the collection, where a row does not state its own.
        config: the subset; none for corpora without subsets.
        columns: which field says what.
        rules: filter rules when it goes through `corpus.build`.
    """

    name: str
    domain: str
    licence: str = "as its page on the hub states"
    config: str | None = None
    columns: Columns = field(default_factory=Columns)
    rules: str = "prose"


_CODE = Columns(text=("content",), name=("path",), group="repo_name", licence="license")
PUBLIC = {
    corpus.name: corpus
    for corpus in (
        # web pages scored for what one can learn from them; columns text, id, url, score, ...
        Public("HuggingFaceFW/fineweb-edu", "general", "ODC-By-1.0", "sample-10BT"),
        # mathematical web pages; columns url, text, score, ...; the subset of the best-scored
        Public("HuggingFaceTB/finemath", "math", "ODC-By-1.0", "finemath-4plus", rules="docstring"),
        # articles without markup; columns id, url, title, text; the English ones of one dump
        Public("wikimedia/wikipedia", "general", "CC-BY-SA-3.0", "20231101.en"),
        # Python files of public repositories; columns repo_name, path, content, license, ...
        Public("codeparrot/codeparrot-clean", "code", columns=_CODE, rules="code"),
    )
}


def public(name: str) -> Public:
    """Return how a corpus is read; one that is not listed is tried with the usual field names."""
    return PUBLIC.get(name) or Public(name, "general")


def documents(
    name: str, *, split: str = "train", rows: Iterable[dict[str, Any]] | None = None
) -> Iterator[Document]:
    """Yield a public corpus' documents, endless for practical purposes: take what you need.

    Args:
        name: on the hub, such as "HuggingFaceFW/fineweb-edu".
        split: of the corpus.
        rows: rows to read instead of the hub's, in the same form.

    Raises:
        EtudeError: `datasets` is not installed, the corpus cannot be reached, or a row has no text.
    """
    known = public(name)
    rows = _stream(known, split) if rows is None else rows
    for number, row in enumerate(rows, start=1):
        yield to_document(
            row,
            known.columns,
            where=f"hub:{name} row {number}",
            fallback=f"{split}:{number}",
            domain=known.domain,
            source=f"hub:{name}",
            licence=known.licence,
        )


def _stream(known: Public, split: str) -> Iterator[dict[str, Any]]:
    where = f"hub:{known.name}"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        needs = "needs the package datasets to be read"
        raise EtudeError(where, needs, "", "pip install 'etude[data]'", code=1) from error
    try:
        yield from datasets.load_dataset(known.name, known.config, split=split, streaming=True)
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # no network, no such name, config or split
        found = f"cannot be streamed ({type(error).__name__}: {str(error)[:200]})"
        raise EtudeError(where, found, "", "check the name and the network", code=1) from error


def source(name: str, *, rows: int, weight: float = 1.0) -> Source:
    """Return the first `rows` rows of a public corpus as a source for `corpus.build`."""
    known = public(name)
    read = partial(_read, name, rows)
    return Source(
        f"hub:{name}", known.domain, weight, f"{known.config} first {rows}", read, known.rules
    )


def _read(name: str, rows: int, wanted: int, tally: Tally) -> Iterator[Document]:
    return islice(documents(name), rows)
