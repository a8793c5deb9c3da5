"""Documents, and their store: compressed JSON lines with a manifest of checksums."""

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from etude.errors import EtudeError
from etude.files import read_json, write_json

SHARD_BYTES = 16_000_000
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus and where it came from.

    Args:
        text: what a model reads.
        domain: "general", "code", "math" or "technical", or a name of the user's own.
        source: where it came from; for code the package, so that files of one repository share it.
        name: unique within the domain; for code `package/path/in/package.py`.
        licence: as the package's own metadata states it.
        copies: times a pass over the up-sampled corpus sees it (set by the quality bucket).
    """

    text: str
    domain: str
    source: str
    name: str
    licence: str
    copies: int = 1

    @property
    def size_bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text.encode())


@dataclass(slots=True)
class Tally:
    """What one source gave and lost on the way through the pipeline."""

    read: int = 0
    read_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    held_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count whole documents (or files) that were left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def remove(self, what: str, count: int = 1) -> None:
        """Count parts that were cut out of documents that stay."""
        if count:
            self.removed[what] = self.removed.get(what, 0) + count


def cache_root(cache: str | os.PathLike[str] | None = None) -> Path:
    """Folder of what etude can make again: `cache`, else ETUDE_CACHE, else `~/.cache/etude`."""
    if cache is not None:
        return Path(cache)
    if "ETUDE_CACHE" in os.environ:
        return Path(os.environ["ETUDE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etude"


def stable_hash(*parts: str) -> int:
    """Return 64 bits that depend on `parts` alone, never on the process or the machine."""
    data = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def write_store(folder: Path, documents: Iterable[tuple[str, Document]], manifest: dict) -> None:
    """Write (split, document) pairs and a manifest into an existing folder.

    Documents of one domain and split keep their order; shards hold about 16 MB of text each.
    """
    groups: dict[tuple[str, str], list[Document]] = {}
    for split, document in documents:
        groups.setdefault((document.domain, split), []).append(document)
    files = []
    for (domain, split), group in groups.items():
        for number, shard in enumerate(_shards(group)):
            name = f"{domain}.{split}.{number:05d}.jsonl.gz"
            files.append(_write_shard(folder / name, shard) | {"domain": domain, "split": split})
    write_json(folder / MANIFEST, manifest | {"files": files})


def _shards(documents: list[Document]) -> Iterator[list[Document]]:
    shard, size = [], 0
    for document in documents:
        shard.append(document)
        size += document.size_bytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(path: Path, documents: list[Document]) -> dict:
    lines = "".join(json.dumps(asdict(d), ensure_ascii=False) + "\n" for d in documents)
    data = gzip.compress(lines.encode(), compresslevel=5, mtime=0)  # mtime 0: same text, same file
    path.write_bytes(data)
    return {
        "name": path.name,
        "documents": len(documents),
        "text_bytes": sum(d.size_bytes for d in documents),
        "file_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def open_store(folder: Path, *, again: str) -> dict:
    """Check every file of a store against its manifest and return the manifest.

    Args:
        folder: where the store lies.
        again: what the user can do to make it anew, for the error line.

    Raises:
        EtudeError: the manifest is missing or broken, or a file is missing or differs from it.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        files = [
            (str(f["name"]), int(f["file_bytes"]), str(f["sha256"])) for f in manifest["files"]
        ]
    except EtudeError as error:
        raise EtudeError(error.where, error.found, error.expected, again, code=1) from error
    except (KeyError, TypeError, ValueError) as error:
        broken = "is not a corpus manifest"
        raise EtudeError(str(folder / MANIFEST), broken, "", again, code=1) from error
    for name, size, sha256 in files:
        _verify(folder / name, size, sha256, again)
    return manifest


def _verify(path: Path, size: int, sha256: str, again: str) -> None:
    if not path.is_file():
        raise EtudeError(str(path), "this shard of the corpus is missing", "", again, code=1)
    data = path.read_bytes()
    if len(data) != size:
        found, expected = f"corrupt shard of {len(data)} bytes", f"{size} bytes"
        raise EtudeError(str(path), found, expected, again, code=1)
    if hashlib.sha256(data).hexdigest() != sha256:
        found, expected = "corrupt shard (its checksum changed)", f"sha256 {sha256[:12]}..."
        raise EtudeError(str(path), found, expected, again, code=1)


def read_shard(path: Path) -> Iterator[Document]:
    """Yield the documents of one shard in the order they were written.

    Raises:
        EtudeError: it is gone since the corpus was opened.
    """
    try:
        lines = gzip.open(path, "rt", encoding="utf-8")  # noqa: SIM115
    except FileNotFoundError as error:
        again = "the same command makes the corpus again and goes on"
        raise EtudeError(str(path), "this shard is gone", "", again, code=1) from error
    with lines:
        for line in lines:
            yield Document(**json.loads(line))
