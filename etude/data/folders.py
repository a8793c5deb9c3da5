"""The user's own texts: a folder of `.jsonl`, `.parquet` and `.txt` files."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from etude.data.documents import Document, Tally
from etude.data.sources import Source
from etude.errors import EtudeError, closest
from etude.files import digest

FIELDS = ("text", "content", "document", "body", "code")
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields of a record say what.

    Args:
        text: fields that may hold the text; the first that is there counts.
        name: fields that may name the document; else its place in the file does.
        group: field that names the repository or site, when one file holds several.
        licence: field that holds a licence.
    """

    text: tuple[str, ...] = FIELDS
    name: tuple[str, ...] = ("id", "url", "path")
    group: str = ""
    licence: str = "license"


def source(
    path: str | os.PathLike[str],
    *,
    domain: str = "general",
    field: str | None = None,
    weight: float = 1.0,
    rules: str = "prose",
    licence: str = "of the user",
) -> Source:
    """Return a folder as a source for `corpus.build`.

    Args:
        path: a folder, read with its subfolders, or one file.
        domain: which share of the mixture it feeds; a new name makes a new domain.
        field: field that holds the text; by default the first of `FIELDS` that a record has.
        weight: its part of the domain.
        rules: filter rules, "prose", "docstring", "code" or "any".
        licence: what the manifest says where a record does not say its own.

    Raises:
        EtudeError: no such folder, or no file of a known kind in it.
    """
    files = text_files(path)
    stamps = [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    columns = Columns(text=(field,)) if field else Columns()
    read = partial(_read, Path(path), domain, columns, licence)
    name = f"folder:{path}"
    return Source(
        name, domain, weight, digest(*stamps), read, rules, "scored" if rules == "prose" else ""
    )


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files below `path` that can be read, sorted.

    Raises:
        EtudeError: nothing is there, or nothing of a known kind.
    """
    path = Path(path)
    if not path.exists():
        raise EtudeError(str(path), "no such folder or file", "", "check the path")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in found if p.name.endswith(ENDINGS)]
    if not files:
        raise EtudeError(
            str(path), f"holds {len(found)} files of other kinds", " or ".join(ENDINGS)
        )
    return files


def _read(
    path: Path, domain: str, columns: Columns, licence: str, wanted: int, tally: Tally
) -> Iterator[Document]:
    return documents(path, domain=domain, columns=columns, licence=licence)


def documents(
    path: str | os.PathLike[str],
    *,
    domain: str = "general",
    columns: Columns | None = None,
    licence: str = "of the user",
) -> Iterator[Document]:
    """Yield the documents of a folder or file, in the order of the sorted names.

    Raises:
        EtudeError: a file or record cannot be read; the line says which file and which line.
    """
    root = Path(path)
    for file in text_files(path):
        label = file.relative_to(root).as_posix() if root.is_dir() else file.name
        if file.name.endswith(".txt"):
            text = _decoded(file.read_bytes(), str(file))
            yield Document(text, domain, f"folder:{root.name}", label, licence)
            continue
        for number, record in _parquet(file) if file.suffix == ".parquet" else _lines(file):
            yield to_document(
                record,
                columns or Columns(),
                where=f"{file}:{number}",
                fallback=f"{label}:{number}",
                domain=domain,
                source=f"folder:{root.name}",
                licence=licence,
            )


def to_document(
    record: object,
    columns: Columns,
    *,
    where: str,
    fallback: str,
    domain: str,
    source: str,
    licence: str,
) -> Document:
    """Turn one record into a document.

    Args:
        record: a mapping of field names to values.
        columns: which field says what.
        where: file and line, or set and row, for the error.
        fallback: name of a record that has none.
        domain: of the document.
        source: of the document, where the record names no group.
        licence: of the document, where the record names none.

    Raises:
        EtudeError: not a mapping, no text field, or a text that is no string.
    """
    if not isinstance(record, dict):
        raise EtudeError(where, f"a record is a {type(record).__name__}", "an object with a text")
    field = next((f for f in columns.text if f in record), None)
    if field is None:
        has = ", ".join(record) or "no field"
        hint = closest(columns.text[0], record) or "name the field that holds the text"
        raise EtudeError(where, f"a record has {has}", f"one of {', '.join(columns.text)}", hint)
    text = record[field]
    if not isinstance(text, str):
        raise EtudeError(where, f"{field} is a {type(text).__name__}", "a string")
    named = next((str(record[f]) for f in columns.name if record.get(f)), fallback)
    group = str(record[columns.group]) if columns.group and record.get(columns.group) else ""
    stated = str(record.get(columns.licence) or licence)
    return Document(text, domain, group or source, f"{group}/{named}" if group else named, stated)


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as lines:
        for number, line in enumerate(_read_all(lines, file), start=1):
            where = f"{file}:{number}"
            text = _decoded(line, where)
            if text.strip():
                try:
                    yield number, json.loads(text)
                except json.JSONDecodeError as error:
                    raise EtudeError(
                        where, f"is not JSON ({error.msg})", "one object a line"
                    ) from error


def _read_all(lines: Iterable[bytes], file: Path) -> Iterator[bytes]:
    try:
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise EtudeError(str(file), f"is cut short or damaged ({error})", do="copy it again") from (
            error
        )


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EtudeError(
            where, f"is not UTF-8 (byte {error.start})", "", "convert the file"
        ) from error


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        needs = "needs pyarrow to be read"
        raise EtudeError(str(file), needs, "", "pip install 'etude[data]'", code=1) from error
    try:
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (arrow.ArrowException, OSError) as error:
        raise EtudeError(
            str(file), f"is no whole parquet file ({error})", "", "copy it again"
        ) from error
