"""Figures of the house that a machine can hold: size, annotations, no paths of one machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "etude"
ROOT = PACKAGE.parent
FILE_LINES, FUNCTION_LINES = 450, 60
FILES = sorted(PACKAGE.rglob("*.py"))
PROSE = {".py", ".md", ".toml", ".yaml", ".yml", ".jinja", ".txt", ".cfg", ""}
SKIPPED = {"runs", "_build", "_generated", "__pycache__", "build", "dist"}

ABSOLUTE = re.compile(r"(?<![\w.:/*-])/(?:home|root|work|opt|Users|mnt)/\w[\w./-]*")
RELATIVE = re.compile(r"(?<![\w./])(?:\.\./)+[\w./-]*")


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True when every argument but self is annotated, and the result."""
    named = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    answers = function.returns is not None or function.name == "__init__"
    return answers and all(a.annotation or a.arg in ("self", "cls") for a in named)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_is_short_and_typed(file):
    source = file.read_text()
    lines, found = source.count("\n"), functions(ast.parse(source))
    assert lines <= FILE_LINES
    assert [f.name for f in found if f.end_lineno - f.lineno >= FUNCTION_LINES] == []
    assert [f.name for f in found if not typed(f)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_shapes_are_not_turned_into_strings(file):
    """jaxtyping reads annotations as objects; the future import would make them text."""
    source = file.read_text()
    assert not ("from __future__ import annotations" in source and "jaxtyping" in source)


def own_files() -> list[Path]:
    """Return the project's text files: what git tracks or would add; all of them in a bare copy."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\n") if listed.returncode == 0 else []
    files = [ROOT / name for name in names if name] or list(ROOT.rglob("*"))
    return [f for f in files if f.suffix in PROSE and f.is_file() and not made(f)]


def made(file: Path) -> bool:
    """True for caches, builds and runs, and for the licence, whose text is not ours."""
    folders = file.relative_to(ROOT).parts[:-1]
    hidden = any(name.startswith(".") and name != ".ci" for name in folders)
    return hidden or bool(SKIPPED & set(folders)) or file.name == "LICENSE"


def strays(file: Path, text: str) -> list[str]:
    """Return the paths in `text` that name a place of one machine or leave the repository."""
    folder = file.parent
    away = [p for p in RELATIVE.findall(text) if not (folder / p).resolve().is_relative_to(ROOT)]
    return ABSOLUTE.findall(text) + away


def test_no_path_of_a_machine_or_outside_of_the_repository_is_named():
    found = {file: strays(file, file.read_text(errors="replace")) for file in own_files()}
    assert {str(file): paths for file, paths in found.items() if paths} == {}


def test_the_path_guard_sees_what_it_must():
    inside, outside = "[page](" + "../README.md)", "see " + "../../notes.md"
    assert strays(ROOT / "docs/index.md", inside) == []
    assert strays(ROOT / "docs/index.md", outside) == ["../../notes.md"]
    assert strays(ROOT / "README.md", "at /" + "home/me/x") == ["/" + "home/me/x"]
