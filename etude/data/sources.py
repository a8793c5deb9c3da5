"""What a plain install puts on the machine, as sources of documents.

Every reader is a generator that takes the bytes wanted and a tally, yields documents in an order
fixed by hashes, and may be stopped at any document: a small corpus reads a sample, not a beginning.
"""

import ast
import bz2
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from etude.data import packages
from etude.data.documents import Document, Tally, stable_hash
from etude.data.extract import docstrings, hypertext, restructured, wikitext, without_docstrings

Reader = Callable[[int, Tally], Iterator[Document]]


@dataclass(frozen=True, slots=True)
class Source:
    """One place that texts come from.

    Args:
        name: key in the manifest.
        domain: which share of the mixture it feeds.
        weight: its part of the domain, relative to the other sources there.
        version: changes when the texts do; part of the cache's name.
        read: yields documents, given the bytes wanted and a tally for what it leaves out.
        filter: which rules apply: "prose", "docstring", "code" or "any".
        quality: "reference" texts teach the classifier what is good, "noisy" ones what is not,
            "scored" ones teach nothing; all three are judged, and "" stands outside.
        missing: parts that cannot be had here, with the reason; all of it when `read` is None.
    """

    name: str
    domain: str
    weight: float
    version: str
    read: Reader | None
    filter: str = "prose"
    quality: str = ""
    missing: tuple[str, ...] = ()


SCIENCE = {"sympy": 2.0, "scipy": 2.0, "sklearn": 1.5, "networkx": 1.0, "numpy": 1.0}
TECHNICAL = {"torch": 5.0, "jinja2": 0.3, "pydantic": 0.3}
CODE = (  # packages whose docstrings are not read as prose, so whole files are
    "gensim reasoning_gym mpmath rich typer click yaml joblib datasketch botocore jmespath urllib3"
    " dateutil fsspec filelock huggingface_hub pygments markdown_it smart_open wrapt jaxtyping"
    " packaging tabulate"
)
STRIPPED = ("sympy", "networkx", "sklearn", "scipy")  # code with its docstrings taken out


def embedded() -> list[Source]:
    """Return the sources of the default corpus; those not on this machine say so in `missing`."""
    return [
        _shipped("wikipedia", "general", 10.0, "gensim", wikipedia, quality="reference"),
        _shipped("news", "general", 6.0, "gensim", news, quality="reference"),
        _shipped("story", "general", 1.0, "reasoning_gym", story, quality="reference"),
        _shipped("service_pages", "general", 6.0, "botocore", service_pages, quality="noisy"),
        _python_source("standard_library", 3.0, standard_library, "code"),
        _code_source("packages", 2.0, tuple(CODE.split()), package_code),
        _code_source(
            "packages_without_docstrings", 1.0, STRIPPED, partial(package_code, stripped=True)
        ),
        *(_docstring_source(name, "math", weight) for name, weight in SCIENCE.items()),
        _python_source("topics", 2.0, topics, "docstring", domain="technical"),
        *(_docstring_source(name, "technical", weight) for name, weight in TECHNICAL.items()),
    ]


def _shipped(
    name: str, domain: str, weight: float, package: str, reader: Callable, *, quality: str
) -> Source:
    root = packages.folder(package)
    if root is None:
        why = (f"{package} is not installed (pip install 'etude[demo]')",)
        return Source(name, domain, weight, "absent", None, quality=quality, missing=why)
    version = packages.version(package)
    return Source(name, domain, weight, version, partial(reader, root), "prose", quality)


def _python_source(
    name: str, weight: float, reader: Callable, rules: str, *, domain: str = "code"
) -> Source:
    read = partial(reader, packages.standard_library())
    return Source(name, domain, weight, packages.python_version(), read, rules)


def _code_source(name: str, weight: float, names: tuple[str, ...], reader: Callable) -> Source:
    here = [n for n in names if packages.folder(n)]
    missing = tuple(f"{n} is not installed" for n in names if n not in here)
    version = " ".join(f"{n}={packages.version(n)}" for n in here)
    return Source(
        name, "code", weight, version, partial(reader, here) if here else None, "code", "", missing
    )


def _docstring_source(package: str, domain: str, weight: float) -> Source:
    name, root = f"docstrings_{package}", packages.folder(package)
    if root is None:
        return Source(
            name, domain, weight, "absent", None, missing=(f"{package} is not installed",)
        )
    read = partial(package_docstrings, root, package, domain)
    return Source(name, domain, weight, packages.version(package), read, "docstring")


# -- general ----------------------------------------------------------------------------------


def wikipedia(root: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the articles of the Wikipedia extract that gensim ships with its tests."""
    dumps = sorted((root / "test/test_data").glob("enwiki-latest-pages-articles*.bz2"))
    for path in dumps:
        with bz2.open(path, "rt", encoding="utf-8", errors="replace") as file:
            pages = re.findall(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", file.read(), re.S)
        for title, body in sorted(pages, key=lambda page: stable_hash("wikipedia", page[0])):
            if re.match(r"\s*#redirect", body, re.I):
                tally.drop("redirect page")
            elif ":" in title:
                tally.drop("page about Wikipedia itself")
            else:
                text = f"{title}\n\n{wikitext(body)}"
                yield Document(text, "general", "wikipedia", title, "CC-BY-SA (Wikipedia)")


def news(root: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the news items of the Lee corpus, one a line in gensim's test data."""
    licence = f"not stated; shipped in gensim ({packages.licence('gensim')})"
    for name in ("lee_background.cor", "lee.cor"):
        path = root / "test/test_data" / name
        if path.is_file():
            for number, line in enumerate(packages.read_text(path).splitlines(), start=1):
                yield Document(line.strip(), "general", "news", f"{name}:{number}", licence)


def story(root: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the story that reasoning-gym ships for its letter tasks, in chapter-sized pieces."""
    path = root / "data/in_the_year_2889.txt"
    if path.is_file():
        for number, piece in enumerate(pieces(book(packages.read_text(path)), 8_000), start=1):
            yield Document(piece, "general", "story", f"{path.stem}/{number}", "public domain")


def book(text: str) -> str:
    """Return a Project Gutenberg text without the licence before and after it."""
    inside = re.search(r"\*\*\* ?START OF.*?\*\*\*(.*?)(?:\*\*\* ?END OF|$)", text, re.S)
    return (inside.group(1) if inside else text).strip()


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut at paragraph borders into pieces of at least `size` characters, save the last."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        held.append(paragraph)
        if sum(map(len, held)) >= size:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def service_pages(root: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the HTML help of cloud service operations: real, dull and repetitive pages."""
    licence = packages.licence("botocore")
    models = _newest_models(root / "data")
    share = max(20_000, wanted // max(len(models), 1) * 4)  # several services, none of them whole
    for path in models:
        service, taken = path.parent.parent.name, 0
        for name, markup in _operations(path):
            text = f"{service}: {_spaced(name)}\n\n{hypertext(markup)}"
            taken += len(text)
            yield Document(text, "general", "service_pages", f"{service}/{name}", licence)
            if taken > share:
                break


def _newest_models(data: Path) -> list[Path]:
    newest = {p.parent.parent.name: p for p in sorted(data.glob("*/*/service-2.json*"))}
    return packages.scattered(list(newest.values()), data)


def _operations(path: Path) -> list[tuple[str, str]]:
    raw = path.read_bytes()
    model = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    found = [("overview", model.get("documentation", ""))]
    found += [
        (name, op.get("documentation", "")) for name, op in model.get("operations", {}).items()
    ]
    return sorted(found, key=lambda item: stable_hash(path.parent.parent.name, item[0]))


def _spaced(name: str) -> str:
    """Write an operation name as words: "CreateHttpProxy" -> "create http proxy"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


# -- technical and scientific prose -----------------------------------------------------------


def package_docstrings(
    root: Path, package: str, domain: str, wanted: int, tally: Tally, *, min_chars: int = 200
) -> Iterator[Document]:
    """Yield the docstrings of a package that tell more than a line or two."""
    licence = packages.licence(package)
    for path in packages.scattered(list(packages.python_files(root)), root):
        module = _module(path, root, package)
        try:
            found = list(docstrings(packages.read_text(path), module))
        except (SyntaxError, ValueError, RecursionError):
            tally.drop("file is not Python of this version")
            continue
        for name, text in found:
            if len(text) < min_chars:
                tally.drop(f"docstring under {min_chars} characters")
            else:
                body = f"{name}\n\n{restructured(text)}"
                yield Document(body, domain, f"docstrings_{package}", name, licence)


def _module(path: Path, root: Path, package: str) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join([package, *(p for p in parts if p != "__init__")])


def topics(root: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the language reference that Python's own `help()` prints."""
    path = root / "pydoc_data/topics.py"
    if not path.is_file():
        return
    statement = next(
        n for n in ast.parse(packages.read_text(path)).body if isinstance(n, ast.Assign)
    )
    found: dict[str, str] = ast.literal_eval(statement.value)
    for name in sorted(found, key=lambda n: stable_hash("topics", n)):
        yield Document(restructured(found[name]), "technical", "topics", name, "PSF-2.0")


# -- code -------------------------------------------------------------------------------------


def standard_library(root: Path, wanted: int, tally: Tally) -> Iterator[Document]:
    """Yield the standard library: each package is a repository, and each lone module."""
    tops = [p for p in root.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    tops = [p for p in tops if p.name not in packages.SKIPPED_MODULES | packages.SKIPPED_FOLDERS]
    for top in packages.scattered(tops, root):
        if top.is_file():
            yield _code(top, root, top.stem, "PSF-2.0")
        else:
            for path in _repository(top, wanted // 6):
                yield _code(path, root, top.name, "PSF-2.0")


def package_code(
    names: list[str], wanted: int, tally: Tally, *, stripped: bool = False
) -> Iterator[Document]:
    """Yield the files of installed packages, one package after the other; a large one gives a part.

    Args:
        names: importable packages.
        wanted: bytes the caller will take; a package gives at most a sixth.
        tally: counts files that cannot be parsed.
        stripped: take the docstrings out, because they are read as prose elsewhere.
    """
    for package in sorted(names, key=lambda n: stable_hash("packages", n)):
        root, licence = packages.folder(package), packages.licence(package)
        if root is None:
            continue
        for path in _repository(root, wanted // min(6, len(names))):
            document = _code(path, root.parent, package, licence)
            if not stripped:
                yield document
                continue
            try:
                yield replace(document, text=without_docstrings(document.text))
            except (SyntaxError, ValueError, RecursionError):
                tally.drop("file is not Python of this version")


def _code(path: Path, above: Path, package: str, licence: str) -> Document:
    name = path.relative_to(above).as_posix()
    name = name if name.startswith(f"{package}/") else f"{package}/{name}"
    return Document(packages.read_text(path), "code", package, name, licence)


def _repository(root: Path, wanted: int) -> Iterator[Path]:
    """Yield whole subfolders in a scattered order until `wanted` bytes: kin stay together."""
    folders: dict[Path, list[Path]] = {}
    for path in packages.python_files(root):
        folders.setdefault(path.parent, []).append(path)
    taken = 0
    for here in packages.scattered(list(folders), root):
        for path in folders[here]:
            size = path.stat().st_size
            if taken and taken + size > wanted:
                continue
            taken += size
            yield path
