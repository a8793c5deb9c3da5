"""The corpus: built once by the pipeline, stored, checked at every opening. Read this first."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from etude.data.documents import (
    MANIFEST,
    Document,
    cache_root,
    open_store,
    read_shard,
    write_store,
)
from etude.data.fetch import fetched
from etude.data.pipeline import Progress, Recipe, assemble
from etude.data.show import page
from etude.data.sources import Source, embedded
from etude.errors import EtudeError, closest
from etude.files import atomic_folder, digest

# files of this package that decide what a corpus holds: a change in one makes a new corpus
CODE = [
    "archive",
    "clean",
    "commits",
    "contamination",
    "dedup",
    "documents",
    "extract",
    "fetch",
    "mix",
    "packages",
    "pipeline",
    "quality",
    "sources",
]
SIZES = {
    "tiny": Recipe(bytes=500_000, longest=6_000),
    "smoke": Recipe(bytes=5_000_000, longest=24_000),
    "full": Recipe(bytes=60_000_000),
}


class Corpus:
    """Documents by domain and split, with the manifest of how they came to be.

    Args:
        folder: a folder that `build` wrote.

    Raises:
        EtudeError: a file is missing or corrupt; the line names it and says how to rebuild.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        again = f"delete {self.folder} and run `etude data build` again"
        self.manifest = open_store(self.folder, again=again)

    @property
    def domains(self) -> list[str]:
        """Domains that have documents to train on."""
        return list(self.manifest["mixture"])

    @property
    def mixture(self) -> dict[str, float]:
        """Share of each domain, adding up to 1."""
        return dict(self.manifest["mixture"])

    def documents(
        self, domain: str, split: str = "train", *, upsample: bool = False
    ) -> Iterator[Document]:
        """Yield the documents of a domain.

        Args:
            domain: one of `domains`.
            split: "train" or "held_out".
            upsample: yield each as often as its quality bucket says, in rounds, so that the copies
                of one lie far apart. What is trained on is this; what is counted or joined is not.

        Raises:
            EtudeError: no such domain or split.
        """
        _known(domain, self.domains, "domain")
        _known(split, ["train", "held_out"], "split")
        rounds = max(self.manifest["copies"].get(domain, 1), 1) if upsample else 1
        for turn in range(rounds):
            for file in self.manifest["files"]:
                if (file["domain"], file["split"]) == (domain, split):
                    for document in read_shard(self.folder / file["name"]):
                        if not upsample or document.copies > turn:
                            yield document


def _known(name: str, names: list[str], kind: str) -> None:
    if name not in names:
        raise EtudeError(
            f"corpus {kind} {name!r}", "not there", ", ".join(names), closest(name, names)
        )


def build(
    size: str | Recipe = "smoke",
    *,
    folder: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    sources: list[Source] | None = None,
    rebuild: bool = False,
    rules: Mapping[str, Any] | None = None,
) -> Corpus:
    """Return the corpus of a size, from the cache or built now.

    Args:
        size: "tiny", "smoke" or "full", or the numbers themselves.
        folder: where to store it; by default a folder of the cache named by the content.
        cache: root of the cache; by default ETUDE_CACHE or `~/.cache/etude`.
        progress: called with (description, done, total) while it works.
        sources: what to read; by default what is installed, and what `etude data fetch` brought.
        rebuild: build even if a corpus of this content is there.
        rules: numbers that differ from those of the size, by name.

    Raises:
        EtudeError: unknown size, no source at all, a folder that holds something else, or a corpus
            in the cache that is corrupt.
    """
    recipe = replace(_recipe(size), **(rules or {}))
    sources = embedded() + fetched(cache) if sources is None else sources
    key = content_key(recipe, sources)
    target = Path(folder) if folder else cache_root(cache) / "corpus" / key
    if (target / MANIFEST).is_file() and not rebuild:
        corpus = Corpus(target)
        if corpus.manifest.get("key") == key:
            return corpus
    elif target.exists() and not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise EtudeError(str(target), "holds files that are no corpus", "", "choose another folder")
    documents, manifest = assemble(recipe, sources, progress or (lambda *_: None))
    with atomic_folder(target) as new:
        write_store(
            new, documents, manifest | {"key": key, "size": size if isinstance(size, str) else ""}
        )
    return Corpus(target)


def _recipe(size: str | Recipe) -> Recipe:
    if isinstance(size, Recipe):
        return size
    if size not in SIZES:
        raise EtudeError(f"corpus size {size!r}", "unknown", ", ".join(SIZES), closest(size, SIZES))
    return SIZES[size]


def content_key(recipe: Recipe, sources: list[Source]) -> str:
    """Name a corpus by what decides its content: the numbers, the sources' versions, this code."""
    here = Path(__file__).parent
    code = [(here / f"{name}.py").read_bytes() for name in CODE]
    parts = [f"{s.name} {s.domain} {s.weight} {s.version} {s.missing}" for s in sources]
    return digest(repr(asdict(recipe)), *parts, *code)


def show(corpus: Corpus, *, samples: int = 0, characters: int = 300) -> str:
    """Return the manifest as a page of text, with the first `samples` documents of each domain."""
    shown = {x: list(islice(corpus.documents(x), samples)) for x in corpus.domains}
    return page(corpus.manifest, str(corpus.folder), shown, characters)
