"""One run per folder at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etude.errors import EtudeError


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process while the block runs.

    The system lets go when the process dies, however it does.

    Raises:
        EtudeError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        found = f"cannot be written ({error.strerror})"
        raise EtudeError(str(folder), found, do="choose another folder", code=1) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        who = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        found = f"another run is at work in it (process {who})"
        do = "wait for it, stop it, or choose another folder"
        raise EtudeError(str(folder), found, do=do, code=1) from error
    try:
        with suppress(OSError):  # who holds it is told as far as the disk has room for it
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
