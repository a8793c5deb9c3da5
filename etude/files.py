"""Writes that either happen whole or not at all, and small JSON helpers."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from etude.errors import EtudeError

PART, OLD = ".part", ".old"  # of what is under way
DAY = 86_400.0


@contextmanager
def atomic(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file that takes the place of `path` once the block ends without an error.

    Args:
        path: file to write; its folder is made when missing.
        mode: "wb" or "w".

    Raises:
        EtudeError: the disk is full or the folder cannot be written; what stood at `path` is
            intact.
    """
    path = Path(path)
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        os.chmod(name, 0o644)  # mkstemp lets nobody else read
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if name and os.path.exists(name):
            os.unlink(name)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `path` that takes its place, whole, once the block ends well.

    Raises:
        EtudeError: the disk is full or the parent cannot be written; what stood at `path` is
            intact.
    """
    path = Path(path)
    new = old = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, older=DAY)
        new = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART))
        new.chmod(0o755)
        yield new
        _sync(new)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=OLD))
            os.replace(path, old / "kept")
        os.replace(new, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if old and (old / "kept").exists() and not path.exists():
            os.replace(old / "kept", path)
        for rest in (new, old):
            if rest and rest.exists():
                shutil.rmtree(rest, ignore_errors=True)


def sweep(folder: Path, *, older: float = 0.0) -> None:
    """Delete what a kill in the middle of a write left behind in `folder` and below.

    Args:
        folder: searched with its subfolders; with `older` the folder itself only.
        older: leave what changed in the last so many seconds, for another process may be at work.
    """
    find = folder.glob if older else folder.rglob
    for rest in [path for ending in (PART, OLD) for path in find(f".*{ending}")]:
        with suppress(OSError):  # gone already, or of another user
            if time.time() - rest.stat().st_mtime >= older:
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def _unwritable(path: Path, error: OSError) -> EtudeError:
    why = error.strerror or str(error)
    return EtudeError(
        str(path),
        f"cannot be written ({why})",
        "",
        "free some space or choose another folder",
        code=1,
    )


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        EtudeError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EtudeError(str(path), "no such file") from error
    except OSError as error:
        raise EtudeError(str(path), f"cannot be read ({error.strerror})", code=1) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EtudeError(str(path), f"is not JSON ({error})", "a whole JSON file") from error


def digest(*parts: str | bytes) -> str:
    """Return 16 hex digits that name the content of `parts`; the borders between parts count."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:16]
