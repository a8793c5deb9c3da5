"""Token sets by the names that mixtures use, made when first asked for and cached by content."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, groupby, islice
from pathlib import Path
from typing import Any

from etude.data import folders, hub
from etude.data.corpus import Corpus
from etude.data.documents import Document, cache_root, stable_hash
from etude.data.encode import encode_chats, encode_documents
from etude.data.mix import SHARES
from etude.data.synth import DERIVED, derive
from etude.data.synth_chats import Chat
from etude.data.tokens import INDEX, TokenSet
from etude.errors import EtudeError, closest
from etude.files import digest
from etude.text import chat
from etude.text.tokenizer import Tokenizer

GENERATION = "1"  # raised when this code makes other sets from the same words
LETTERS = " ".join("abcdefghijklmnopqrstuvwxyz")
LETTER_LINES = 5000  # so often, every letter with its space becomes one token
HELD_OUT = 0.01  # share of the documents of the user's own sets that nothing trains on
FEW = 10  # of fewer documents none is held out; of the first so many, one is


class NoCorpus:
    """Stands for an embedded corpus that a recipe does not want."""

    @property
    def domains(self) -> list[str]:
        """No domain."""
        return []

    @property
    def manifest(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def documents(
        self, domain: str, split: str = "train", *, upsample: bool = False
    ) -> Iterator[Document]:
        """Yield nothing."""
        return iter(())


@dataclass(slots=True)
class Library:
    """All texts that a run can name.

    Attributes:
        corpus: the embedded corpus, or `NoCorpus()` where the mixtures name other sets only.
        count: documents made or read per derived, folder or hub set at most.
        seed: of everything that is made.
        cache: root of the cache; None is the usual one.
        format: chat format in which conversations are written; None for a system without one.
    """

    corpus: "Corpus | NoCorpus"
    count: int
    seed: int
    cache: Path | None = None
    format: str | None = "glm45"

    def documents(self, name: str, split: str = "train") -> Iterator[Document]:
        """Yield the documents of a set; conversations come as the text a model reads.

        Args:
            name: a corpus domain, a derived set, `folder:PATH` or `hub:ORG/NAME`.
            split: "train" or "held_out"; of folders and hub sets see `split_off`.

        Raises:
            EtudeError: no such set.
        """
        for made in self._made(name, split):
            yield self._as_document(made, name) if isinstance(made, Chat) else made

    def _made(self, name: str, split: str) -> Iterator[Document | Chat]:
        kind, colon, rest = name.partition(":")
        if colon and kind in ("folder", "hub"):
            read = folders.documents(rest) if kind == "folder" else hub.documents(rest)
            return split_off(islice(read, self.count), held=split == "held_out")
        if name in self.corpus.domains:
            return self.corpus.documents(name, split, upsample=split == "train")
        if name in DERIVED:
            return iter(derive(name, self.corpus, self.count, self.seed, split=split))
        names = [*self.corpus.domains, *DERIVED, "folder:PATH", "hub:ORG/NAME"]
        raise EtudeError(f"set {name}", "no such set", ", ".join(names), closest(name, names))

    def held_out(self, name: str, count: int) -> list[Document]:
        """Return up to `count` documents that nothing trains on, the same ones at every call.

        Raises:
            EtudeError: there is none, as in a folder of few documents.
        """
        if name in self.corpus.domains:
            found = list(self.documents(name, "held_out"))
            random.Random(self.seed).shuffle(found)
        else:
            found = list(islice(self.documents(name, "held_out"), count))
        if not found:
            do = "leave it out of the eval stage's domains"
            if ":" in name:
                do += f", or give it {FEW} documents or more"
            raise EtudeError(f"set {name}", "has no held-out document", do=do)
        return found[:count]

    def present(self, names: Iterable[str], *, where: str, say: Callable[[str], None]) -> list[str]:
        """Return the sets that can be had here, and say which domains of the corpus cannot.

        A domain is missing where none of the packages that it is read from is installed. A name
        that no corpus has is not judged here: see `documents`.

        Args:
            names: of sets.
            where: the recipe's key, for the line.
            say: called with one line for each domain left out.
        """
        here, domains = [], self.corpus.domains
        for name in names:
            if not domains or name not in SHARES or name in domains:
                here.append(name)
                continue
            rows = self.corpus.manifest.get("sources", {})
            lost = self.corpus.manifest.get("missing", {})
            why = [r for n, r in lost.items() if rows.get(n, {}).get("domain") == name]
            because = f" ({'; '.join(chain.from_iterable(why))})" if why else ""
            say(f"{where}: {name} is left out, its sources are not on this machine{because}")
        return here

    def texts(self, name: str) -> Iterator[str]:
        """Yield the training texts of a set."""
        return (document.text for document in self.documents(name))

    def open(self, tokenizer: Tokenizer, name: str, *, fim: float = 0.0) -> TokenSet:
        """Return the training documents of a set as tokens.

        Args:
            tokenizer: vocabulary.
            name: see `documents`.
            fim: share of code documents rewritten as fill-in-the-middle.

        Raises:
            EtudeError: no such set, or one without a document.
        """
        words = (self._content(name), name, str(fim), str(self.format))
        key = digest(GENERATION, tokenizer.key, *words)
        folder = self._folder(key)
        if not (folder / INDEX).exists():
            rows = self._rows(tokenizer, name, fim)
            TokenSet.write(folder, rows, tokenizer.vocab_size)
        found = TokenSet.open(folder)
        if not (found.lengths > 1).any():  # the first token of a document is no target
            raise EtudeError(f"set {name}", "has no document", do="leave it out of the mixture")
        return found

    def _rows(
        self, tokenizer: Tokenizer, name: str, fim: float
    ) -> Iterator[tuple[Sequence[int], Sequence[bool] | None]]:
        made = self._made(name, "train")
        for is_chat, group in groupby(made, key=lambda one: isinstance(one, Chat)):
            if is_chat:
                chats = (one for one in group if isinstance(one, Chat))
                yield from encode_chats(tokenizer, chats, train="all", format=self.format)
            else:
                texts = (one for one in group if isinstance(one, Document))
                yield from encode_documents(tokenizer, texts, fim_rate=fim, seed=self.seed)

    def _content(self, name: str) -> str:
        corpus = self.corpus.manifest.get("key", "")
        kind, _, rest = name.partition(":")
        if kind == "folder":
            stats = [(str(path), path.stat()) for path in folders.text_files(rest)]
            stamps = [(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
            return f"{stamps} {self.count} {HELD_OUT} {FEW}"
        if kind == "hub":
            return f"{self.count} {self.seed} {HELD_OUT} {FEW}"
        return f"{corpus} {self.count} {self.seed}" if name in DERIVED else f"{corpus} {self.seed}"

    def chats(
        self,
        tokenizer: Tokenizer,
        chats: Iterable[Chat],
        *,
        key: str,
        length: int,
        learn_end: bool = False,
    ) -> tuple[TokenSet, int]:
        """Return conversations as tokens with loss masks, and how many were too long.

        Args:
            tokenizer: vocabulary.
            chats: conversations; read only when the set is not in the cache.
            key: names their content.
            length: the longest kept.
            learn_end: see `encode_chats`; part of what `key` names.

        Raises:
            EtudeError: not one fits.
        """
        words = (key, str(length), str(self.format))
        folder = self._folder(digest(GENERATION, tokenizer.key, *words))
        left_out = 0
        if not (folder / INDEX).exists():

            def rows() -> Iterator[tuple[list[int], list[bool]]]:
                nonlocal left_out
                coded = encode_chats(tokenizer, chats, format=self.format, learn_end=learn_end)
                for ids, mask in coded:
                    if len(ids) <= length:
                        yield list(ids), list(mask)
                    else:
                        left_out += 1

            TokenSet.write(folder, rows(), tokenizer.vocab_size)
        found = TokenSet.open(folder)
        if not len(found):
            raise EtudeError("chats", f"none fits into {length} tokens", do="raise data.length")
        return found, left_out

    def _as_document(self, made: Chat, name: str) -> Document:
        of, tools = chat.format_of(self.format), made.tools or None
        text = chat.render(made.messages, tools=tools, thinking=made.thinking, format=of)
        return Document(text, name, "made", digest(text), "own")

    def _folder(self, key: str) -> Path:
        return cache_root(self.cache) / "tokens" / key

    def sample(self, size_bytes: int) -> Iterator[str]:
        """Yield text to train a vocabulary on: letters, then every domain, traces and tool use."""
        names = [*self.corpus.domains, "traces", *(["agent"] if self.format else [])]
        readers = {name: self.texts(name) for name in names}
        yield from [LETTERS] * LETTER_LINES
        for name in cycle(names):
            text = next(readers[name], None) if name in readers else None
            if text is None:
                readers.pop(name, None)
                if not readers:
                    return
                continue
            yield text
            size_bytes -= len(text.encode())
            if size_bytes <= 0:
                return


def split_off(documents: Iterator[Document], *, held: bool) -> Iterator[Document]:
    """Yield what of a user's set is held out, or all the rest: about 1 %, and at least one of ten.

    A hash of the text decides, so that equal texts stay together and a set that grows keeps what it
    held out. So that there is always one, of the first ten documents the one with the lowest hash
    goes. Of fewer than ten documents none does: it would be too much of them.
    """
    first = list(islice(documents, FEW))
    draws = [_draw(document) for document in first]
    bar = HELD_OUT if len(first) == FEW else 0.0
    least = min(draws) if bar else -1.0
    for document in chain(first, documents):
        draw = _draw(document)
        if (draw < bar or draw == least) == held:
            yield document


def _draw(document: Document) -> float:
    return stable_hash("held out", document.text) / 2.0**64
