"""README, CONTRIBUTING and docs tell the truth about commands, files and code."""

import ast
import re
from pathlib import Path

import pytest
import typer

from etude import cli

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = {file.stem for file in (ROOT / "etude/recipes").glob("*.yaml")}
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
COMMAND = re.compile(r"(?:^\$ |`)(etude|make) (\w[\w-]*)(?: ([\w./-]+))?", re.MULTILINE)
REFUSED = re.compile(r"^\$ .*\nerror: .*$", re.MULTILINE)  # shown because it is wrong

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def verbs() -> set[str]:
    return set(typer.main.get_command(cli.app).commands)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pages
def test_commands_exist(page):
    known = {"etude": verbs(), "make": targets()}
    named = COMMAND.findall(REFUSED.sub("", page.read_text()))
    assert [f"{tool} {verb}" for tool, verb, _ in named if verb not in known[tool]] == []
    trained = [what for _, verb, what in named if verb in ("train", "plan") and "." not in what]
    assert [what for what in trained if what and what not in RECIPES and what.islower()] == []


@pages
def test_links_lead_to_files(page):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    generated = {"recipe.md"}  # written when the pages are built
    assert [link for link in missing if Path(link).name not in generated] == []


@pages
def test_python_examples_parse(page):
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            ast.parse(code)


def test_the_readme_shows_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text and "make test" in text
