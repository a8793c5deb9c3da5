"""Token sets: encoded documents on disk, memory-mapped, checked when opened.

A set is a folder of shards and one `set.json`. Shard 3 is `00003.ids` (token ids, two or four bytes
each by vocabulary), `00003.ends` (where each document ends, eight bytes each) and, when some
document is trained only in part, `00003.mask` (one bit a token). All little-endian. `set.json`
holds the size and the CRC of every file, so a torn or flipped shard is named before a run starts.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etude.errors import EtudeError
from etude.files import atomic_folder, digest, read_json, write_json

VERSION = 1
INDEX = "set.json"


@dataclass(frozen=True, slots=True)
class _Shard:
    ids: np.ndarray  # [tokens], memory-mapped
    ends: np.ndarray  # [documents], cumulative
    mask: np.ndarray | None  # [ceil(tokens / 8)], packed bits


class TokenSet:
    """Documents of one source as token ids, read without loading them.

    Attributes:
        vocab: every id is below it.
        lengths: tokens of each document, int64 `[len(self)]`.
        tokens: tokens in all.
        counted: tokens that are trained on as targets; equals `tokens` without masks.
        key: names the content; equal sets have equal keys.
    """

    def __init__(self, folder: Path, index: dict, shards: list[_Shard]) -> None:
        """Use `TokenSet.open`."""
        self.folder = folder
        self.vocab: int = index["vocab"]
        self.tokens: int = index["tokens"]
        self.counted: int = index["counted"]
        self.key: str = index["key"]
        self._shards = shards
        self.lengths = np.concatenate(
            [np.diff(shard.ends, prepend=0) for shard in shards] or [np.zeros(0, np.int64)]
        )
        self._first = np.cumsum([0] + [len(shard.ends) for shard in shards])

    @classmethod
    def write(
        cls,
        folder: str | Path,
        docs: Iterable[tuple[Sequence[int], Sequence[bool] | None]],
        vocab: int,
        *,
        shard_tokens: int = 1 << 24,
    ) -> "TokenSet":
        """Write documents as a new set, whole or not at all, and open it.

        Args:
            folder: where; what stood there is replaced once all is written.
            docs: ids and, unless every token is a target, which tokens are; empty documents are
                left out.
            vocab: size of the vocabulary; picks two or four bytes a token.
            shard_tokens: a shard is closed once it holds this many; bounds the memory of writing.

        Raises:
            EtudeError: an id outside the vocabulary, a mask of another length, or a disk that is
            full.
        """
        folder = Path(folder)
        with atomic_folder(folder) as new:
            writer = _Writer(new, vocab)
            for number, (ids, mask) in enumerate(docs):
                writer.add(number, ids, mask)
                if writer.pending >= shard_tokens:
                    writer.flush()
            writer.flush()
            write_json(new / INDEX, writer.index())
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "TokenSet":
        """Open a set and check the size and checksum of each of its files.

        Raises:
            EtudeError: no such set, or a shard that is missing, cut short or changed (named).
        """
        folder = Path(folder)
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or index.get("version") != VERSION:
            raise EtudeError(str(folder / INDEX), "is not a token set of this version", do=_REBUILD)
        for name, (size, crc) in index["files"].items():
            _check(folder / name, size, crc)
        kind = np.dtype(index["dtype"])
        shards = [_open_shard(folder, i, kind, index["files"]) for i in range(index["shards"])]
        return cls(folder, index, shards)

    def __len__(self) -> int:
        """Count the documents."""
        return int(self._first[-1])

    def __getitem__(self, document: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the ids of a document and, where the set has masks, which of them are targets."""
        return self.read(document, 0, int(self.lengths[document]))

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield every document in the order written."""
        return (self[i] for i in range(len(self)))

    def read(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return tokens `start` to `stop` of one document, and their mask if the shard has one."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of a set of {len(self)}")
        number = int(np.searchsorted(self._first, document, side="right")) - 1
        shard, inside = self._shards[number], document - int(self._first[number])
        base = int(shard.ends[inside - 1]) if inside else 0
        first, last = base + start, base + min(stop, int(self.lengths[document]))
        ids = shard.ids[first:last]
        if shard.mask is None:
            return ids, None
        bits = np.unpackbits(shard.mask[first // 8 : -(-last // 8)], bitorder="little")
        return ids, bits[first % 8 : first % 8 + last - first].astype(bool)


_REBUILD = "delete the folder and build the data again"


class _Writer:
    """Gathers documents and writes a shard at a time."""

    def __init__(self, folder: Path, vocab: int) -> None:
        self.folder, self.vocab = folder, vocab
        self.dtype = np.dtype("<u2" if vocab <= 1 << 16 else "<u4")
        self.shards = self.documents = self.tokens = self.counted = self.pending = 0
        self.files: dict[str, tuple[int, int]] = {}
        self.docs: list[tuple[np.ndarray, np.ndarray | None]] = []

    def add(self, number: int, ids: Sequence[int], mask: Sequence[bool] | None) -> None:
        where = f"document {number}"
        row = np.asarray(ids, dtype=np.int64)
        bits = None if mask is None else np.asarray(mask, dtype=bool)
        if bits is not None and bits.shape != row.shape:
            raise EtudeError(where, f"a mask of {bits.size}", f"one of {row.size}, as its tokens")
        if not row.size:
            return
        if row.min() < 0 or row.max() >= self.vocab:
            low_high = f"ids from {row.min()} to {row.max()}"
            raise EtudeError(where, low_high, f"0 to {self.vocab - 1}", "use the model's tokenizer")
        self.docs.append((row.astype(self.dtype), bits))
        self.pending += row.size

    def flush(self) -> None:
        if not self.docs:
            return
        ids = np.concatenate([row for row, _ in self.docs])
        self._put("ids", ids)
        self._put("ends", np.cumsum([row.size for row, _ in self.docs]).astype("<i8"))
        counted = ids.size
        if any(bits is not None for _, bits in self.docs):
            whole = [np.ones(row.size, bool) if bits is None else bits for row, bits in self.docs]
            mask = np.concatenate(whole)
            counted = int(mask.sum())
            self._put("mask", np.packbits(mask, bitorder="little"))
        self.documents += len(self.docs)
        self.tokens += ids.size
        self.counted += counted
        self.shards += 1
        self.docs, self.pending = [], 0

    def _put(self, kind: str, values: np.ndarray) -> None:
        name, data = f"{self.shards:05d}.{kind}", values.tobytes()
        (self.folder / name).write_bytes(data)
        self.files[name] = (len(data), zlib.crc32(data))

    def index(self) -> dict:
        names = sorted(f"{name} {size} {crc}" for name, (size, crc) in self.files.items())
        return {
            "version": VERSION,
            "vocab": self.vocab,
            "dtype": self.dtype.str,
            "shards": self.shards,
            "documents": self.documents,
            "tokens": self.tokens,
            "counted": self.counted,
            "files": self.files,
            "key": digest(str(self.vocab), *names),
        }


def _check(path: Path, size: int, crc: int) -> None:
    if not path.exists():
        raise EtudeError(str(path), "this shard is missing", do=_REBUILD, code=1)
    found = path.stat().st_size
    if found != size:
        raise EtudeError(str(path), f"{found:,} bytes", f"{size:,}", _REBUILD, code=1)
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            value = zlib.crc32(part, value)
    if value != crc:
        raise EtudeError(
            str(path), "its content has changed since it was written", do=_REBUILD, code=1
        )


def _open_shard(folder: Path, number: int, kind: np.dtype, files: dict) -> _Shard:
    name = f"{number:05d}"
    mask = f"{name}.mask"
    return _Shard(
        ids=_mapped(folder / f"{name}.ids", kind),
        ends=np.fromfile(folder / f"{name}.ends", dtype="<i8"),
        mask=_mapped(folder / mask, np.dtype(np.uint8)) if mask in files else None,
    )


def _mapped(path: Path, kind: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype=kind, mode="r").view(np.ndarray)  # plain views slice 5x faster
