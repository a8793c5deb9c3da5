"""Guard two: below `models/`, code names methods, never systems."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "etude"
SHARED = ("nn", "ops", "weights", "objectives", "optim", "train", "engine")
FAMILY = re.compile(r"glm|qwen|kimi|minimax|nemotron|gpt-?3", re.IGNORECASE)
HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def family_names(source: str) -> list[str]:
    """Return "line: token" for each family name outside of comments and docstrings."""
    prose = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, HOLDERS) and ast.get_docstring(node, clean=False) is not None:
            prose.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"{token.start[0]}: {token.string}"
        for token in tokens
        if token.type != tokenize.COMMENT
        and token.start[0] not in prose
        and FAMILY.search(token.string)
    ]


@pytest.mark.parametrize("package", SHARED)
def test_shared_code_names_no_family(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): family_names(file.read_text()) for file in files}
    assert {name: rows for name, rows in found.items() if rows} == {}


def test_the_guard_sees_code_and_overlooks_prose():
    prose = '"""As GLM-4.5 does."""\n\n\ndef f():\n    """Kimi K2."""\n    return 1  # Qwen\n'
    assert family_names(prose) == []
    code = "def glm_loss():\n    return 'minimax'\n"
    assert family_names(code) == ["1: glm_loss", "2: 'minimax'"]
