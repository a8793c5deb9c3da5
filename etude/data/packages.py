"""Find installed packages, their licences and files, without importing one."""

import importlib.metadata
import importlib.util
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from etude.data.documents import stable_hash

SKIPPED_FOLDERS = {
    "tests",
    "test",
    "testing",
    "__pycache__",
    "site-packages",
    "_vendor",
    "vendored",
}
SKIPPED_FOLDERS |= {"externals", "_vendored_packages", "array_api_compat", "array_api_extra"}
# The standard library without its tests, tables and data; `pydoc_data` is read as prose.
SKIPPED_MODULES = {
    "encodings",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "lib-dynload",
    "turtledemo",
    "ensurepip",
}


@cache
def folder(package: str) -> Path | None:
    """Return the folder of an importable package, or None; nothing of it runs."""
    if package in sys.builtin_module_names:
        return None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


@cache
def _distribution(package: str) -> importlib.metadata.Distribution | None:
    names = {"sklearn": "scikit-learn", "yaml": "pyyaml", "dateutil": "python-dateutil"}
    names |= {"markdown_it": "markdown-it-py"}
    for name in (names.get(package, package), package):
        try:
            return importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version(package: str) -> str:
    """Return the installed version, or "absent"."""
    found = _distribution(package)
    return found.version if found else "absent"


def licence(package: str) -> str:
    """Return the licence as the package's own metadata states it, or "not stated"."""
    found = _distribution(package)
    if not found:
        return "not stated"
    meta = found.metadata
    fields = [meta[f] for f in ("License-Expression", "License") if f in meta]
    trove = [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = [n.strip() for n in fields if "\n" not in n.strip() and n.strip() != "UNKNOWN"]
    return (stated + [c.split("::")[-1].strip() for c in trove] + ["not stated"])[0]


def standard_library() -> Path:
    """Return the folder of the running Python's own library."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_version() -> str:
    """Return the version whose standard library is read."""
    return ".".join(map(str, sys.version_info[:3]))


def python_files(root: Path) -> Iterator[Path]:
    """Yield the `.py` files below `root`, sorted, without tests and vendored copies."""
    for here, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f.lower() not in SKIPPED_FOLDERS and f[0] != ".")
        for name in sorted(files):
            if name.endswith(".py") and not re.match(r"test_|conftest|.*_test\.py$", name):
                yield Path(here) / name


def read_text(path: Path) -> str:
    """Return a file's text; bytes that are not UTF-8 become the replacement character."""
    return path.read_text(encoding="utf-8", errors="replace")


def scattered(items: list[Path], root: Path) -> list[Path]:
    """Return paths in an order that is fixed and has nothing to do with their names."""
    return sorted(items, key=lambda p: stable_hash(p.relative_to(root).as_posix()))
