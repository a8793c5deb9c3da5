"""Repository-level code: files of one package in one context, each after what it imports.

GLM-4.5's first mid-training stage joins the files of a repository "to learn cross-file dependency"
(arXiv:2508.06471, section 2.3).
"""

import ast
from collections.abc import Iterable, Iterator

from etude.data.documents import Document

HEADER = "# file: {}\n"
LIMIT = 40_000  # characters of one context
RECORDS = "commits_"  # sources of ready change records, which are no files


def repository(documents: Iterable[Document], *, limit: int = LIMIT) -> Iterator[Document]:
    """Yield contexts of several files of one package, each under a line with its path.

    Args:
        documents: code; `source` names the package, `name` is the path inside it.
        limit: a context is closed before it grows past this many characters.
    """
    packages: dict[str, list[Document]] = {}
    for document in documents:
        if not document.source.startswith(RECORDS):
            packages.setdefault(document.source, []).append(document)
    for package in sorted(packages):
        yield from _contexts(package, in_order(packages[package]), limit)


def _contexts(package: str, files: list[Document], limit: int) -> Iterator[Document]:
    context: list[Document] = []
    size = 0
    for file in files:
        if context and size + len(file.text) > limit:
            yield from _joined(package, context)
            context, size = [], 0
        context.append(file)
        size += len(file.text)
    yield from _joined(package, context)


def _joined(package: str, files: list[Document]) -> Iterator[Document]:
    if len(files) > 1:  # one file alone is already in the corpus
        text = "\n".join(HEADER.format(file.name) + file.text.strip() + "\n" for file in files)
        yield Document(text, "repository", package, files[0].name, files[0].licence)


def in_order(files: Iterable[Document]) -> list[Document]:
    """Return files of one package so that each follows those it imports, if no cycle forbids."""
    by_path = {file.name: file for file in files}
    modules = {}
    for path in by_path:
        dotted = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        modules[dotted] = path
        modules.setdefault(dotted.partition(".")[2], path)  # a standard library has no own folder
    needs = {path: _needs(path, by_path[path].text, modules) for path in by_path}
    return [by_path[path] for path in _after_needs(needs)]


def _needs(path: str, text: str, modules: dict[str, str]) -> list[str]:
    """Paths of the files that one file imports."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    here = path.removesuffix(".py").split("/")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [stem, *(f"{stem}.{name.name}" for name in node.names)]
    return sorted({modules[name] for name in found if name in modules and modules[name] != path})


def _after_needs(needs: dict[str, list[str]]) -> list[str]:
    """Depth first, needs before the needing; an edge that would close a cycle is dropped."""
    done: dict[str, None] = {}
    begun: set[str] = set()
    for root in sorted(needs):
        stack = [(root, False)]
        while stack:
            path, ready = stack.pop()
            if ready:
                done[path] = None
            elif path not in begun:
                begun.add(path)
                stack.append((path, True))
                stack += [(need, False) for need in reversed(needs[path])]
    return list(done)
