"""Read members of an archive straight into memory: nothing is unpacked, installed or run."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from etude.errors import EtudeError

MOST_BYTES = 500_000_000  # of all members read: a bomb is refused before memory is gone


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the plain files of a `.tar.gz` or `.whl` that `wanted` picks.

    Links and devices are passed over. Nothing is written, so no name can lead out of a folder;
    archives that try are refused all the same.

    Raises:
        EtudeError: the archive is broken, too large, or holds a name that leads out of it.
    """
    again = "delete it and run `etude data fetch` again"
    read = _tar if path.name.endswith((".tar.gz", ".tgz", ".tar")) else _zip
    left = MOST_BYTES
    try:
        for name, size, content in read(path):
            if _leads_out(name):
                raise EtudeError(str(path), f"member {name!r} leads out of the archive", "", again)
            if wanted(name):
                left -= size
                if left < 0:
                    raise EtudeError(str(path), "unpacks to more than 500 MB", "", again)
                yield name, content()
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise EtudeError(str(path), f"broken archive ({error})", "", again, code=1) from error


Member = tuple[str, int, Callable[[], bytes]]


def _tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isfile():
                yield info.name, info.size, lambda i=info: _content(archive, i)


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read() if file else b""


def _zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, lambda i=info: archive.read(i)


def _leads_out(name: str) -> bool:
    pure = PurePosixPath(name.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or ":" in name.split("/")[0]
