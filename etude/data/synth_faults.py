"""Small faults for a function: a wrong comparison, sign, constant, name or branch, on one line.

The fault is what a change record repairs. Each kind knows how people describe it in an issue.
"""

import ast
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Function:
    """A function inside a file.

    Attributes:
        path: of the file.
        name: with the class it belongs to, as `Queue.put`.
        lines: of the whole file, without line ends.
        first, last: its lines, counted from 1, both included.
        node: its syntax tree.
    """

    path: str
    name: str
    lines: list[str]
    first: int
    last: int
    node: ast.FunctionDef

    @property
    def source(self) -> list[str]:
        """Lines of the function."""
        return self.lines[self.first - 1 : self.last]


@dataclass(frozen=True, slots=True)
class Fault:
    """One line made wrong.

    Attributes:
        kind: comparison, sign, constant, name or branch.
        line: number in the file, from 1.
        right, wrong: the line before and after.
        was, became: the part that differs.
    """

    kind: str
    line: int
    right: str
    wrong: str
    was: str
    became: str


Edit = tuple[str, int, int, int, str]  # kind, line, first and last column, new text

COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
COMPARISONS |= {"in": "not in", "not in": "in", "is": "is not", "is not": "is"}
SIGNS = {"+": "-", "-": "+", "*": "+", "//": "/", "%": "//"}
WORDS = {"and": "or", "or": "and"}


def functions(path: str, text: str, *, least: int = 3, most: int = 40) -> list[Function]:
    """Return the functions of `least` to `most` lines in a file; none if it is no Python."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = text.split("\n")
    return [
        Function(path, name, lines, node.lineno, node.end_lineno or node.lineno, node)
        for name, node in _defined(tree, "")
        if least <= (node.end_lineno or 0) - node.lineno + 1 <= most
    ]


def _defined(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _defined(node, f"{prefix}{node.name}.")


def fault(function: Function, rng: random.Random) -> Fault | None:
    """Return a random fault that leaves valid Python, or None where none can be put."""
    by_kind: dict[str, list[Edit]] = {}
    for edit in _edits(function):
        by_kind.setdefault(edit[0], []).append(edit)
    while by_kind:
        kind = rng.choice(sorted(by_kind))
        edit = rng.choice(by_kind.pop(kind))
        made = _apply(function, edit)
        if made:
            return made
    return None


def _apply(function: Function, edit: Edit) -> Fault | None:
    kind, number, start, stop, text = edit
    right = function.lines[number - 1]
    wrong = right[:start] + text + right[stop:]
    lines = function.source
    lines[number - function.first] = wrong
    indent = len(lines[0]) - len(lines[0].lstrip())
    try:
        ast.parse("\n".join(line[indent:] for line in lines))
    except (SyntaxError, ValueError):
        return None
    return Fault(kind, number, right, wrong, right[start:stop], text) if wrong != right else None


def _edits(function: Function) -> Iterator[Edit]:
    """All edits inside one line of plain ASCII (columns of a syntax tree count bytes)."""
    names = [argument.arg for argument in function.node.args.args if argument.arg != "self"]
    for node in ast.walk(function.node):
        line = getattr(node, "lineno", 0)
        if not line or node.end_lineno != line or not function.lines[line - 1].isascii():  # type: ignore[attr-defined]
            continue
        for maker in MAKERS:
            yield from maker(node, function.lines[line - 1], names)


def _between(
    kind: str, left: ast.expr, right: ast.expr, line: str, table: dict[str, str]
) -> Iterator[Edit]:
    """The operator that stands between two operands."""
    start, stop = left.end_col_offset or 0, right.col_offset
    found = line[start:stop].strip(" ()")
    if found in table:
        at = line.index(found, start)
        yield kind, left.lineno, at, at + len(found), table[found]


def _comparison(node: ast.AST, line: str, names: list[str]) -> Iterator[Edit]:
    if isinstance(node, ast.Compare):
        yield from _between("comparison", node.left, node.comparators[0], line, COMPARISONS)


def _sign(node: ast.AST, line: str, names: list[str]) -> Iterator[Edit]:
    if isinstance(node, ast.BinOp) and not _is_text(node.left) and not _is_text(node.right):
        yield from _between("sign", node.left, node.right, line, SIGNS)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr | ast.List) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _constant(node: ast.AST, line: str, names: list[str]) -> Iterator[Edit]:
    if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value < 1000:
        start, stop = node.col_offset, node.end_col_offset or 0
        yield "constant", node.lineno, start, stop, str(node.value + 1)


def _name(node: ast.AST, line: str, names: list[str]) -> Iterator[Edit]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        other = names[(names.index(node.id) + 1) % len(names)]
        if other != node.id:
            yield "name", node.lineno, node.col_offset, node.end_col_offset or 0, other


def _branch(node: ast.AST, line: str, names: list[str]) -> Iterator[Edit]:
    if isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from _between("branch", left, right, line, WORDS)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "branch", node.lineno, node.col_offset, node.operand.col_offset, ""


MAKERS: tuple[Callable[[ast.AST, str, list[str]], Iterator[Edit]], ...] = (
    *(_comparison, _sign, _constant, _name, _branch),
)
