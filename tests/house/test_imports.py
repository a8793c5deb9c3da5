"""What may be imported without what, each in a fresh interpreter."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import etude

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "etude"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Descriptions: data about models and training that a machine without torch can read.
TORCH_FREE = ["errors", "files", "arch", "weights.layout", "cli"]
NEEDS_TORCH = {"models.checkpoint"}  # builds modules and reads tensors
HEAVY = ["torch", "numpy", "pydantic", "transformers", "typer", "rich", "yaml", "jaxtyping"]
BLOCK = "import sys; sys.modules['torch'] = None\n"
TRY_EACH = """
import importlib
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(name, repr(error))
"""


def dotted(file: Path) -> str:
    """Return `models.glm45` for etude/models/glm45.py, `models` for its `__init__.py`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter, whatever this process has imported."""
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def descriptions() -> list[str]:
    """Return the modules that must import without torch."""
    files = [*(PACKAGE / "recipe").glob("*.py"), *(PACKAGE / "models").glob("*.py")]
    return [*TORCH_FREE, *sorted({dotted(file) for file in files} - NEEDS_TORCH)]


def test_descriptions_import_without_torch():
    """One interpreter tries them all and tells each that fails, with the reason."""
    result = run(BLOCK + TRY_EACH, *(f"etude.{name}" for name in descriptions()))
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["show", "glm45"], ["plan", "glm45_quick"]]
)
def test_the_command_line_tells_and_plans_without_torch(arguments):
    code = BLOCK + "from etude.cli import main\nsys.argv = ['etude', *sys.argv[1:]]\nmain()"
    result = run(code, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_the_package_alone_imports_nothing_heavy():
    """What makes `import etude` quick; a wall time would only measure the machine."""
    result = run(f"import sys, etude\nprint(*[name for name in {HEAVY} if name in sys.modules])")
    assert (result.stdout.split(), result.stderr) == ([], "")


@pytest.mark.parametrize("name", ["create", "load", "save", "generate", "train"])
def test_the_public_face_is_there_whatever_was_imported_before(name):
    """A subpackage of the same name, once imported, becomes an attribute of the package too."""
    importlib.import_module("etude.train.loop")
    assert callable(getattr(etude, name))


def test_the_version_is_the_one_that_is_published():
    assert etude.__version__ == PROJECT["version"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=~ ;]", row)[0]) for row in requirements}


def imports(file: Path, *, everywhere: bool) -> set[str]:
    """Return the top-level names that `file` imports: at its top, or `everywhere` in it."""
    tree = ast.parse(file.read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"etude"}


def outside(allowed: set[str], *, everywhere: bool) -> set[str]:
    """Return "file imports name" for each third-party import that is not `allowed`."""
    known = packages_distributions()
    return {
        f"{dotted(file)} imports {name}"
        for file in PACKAGE.rglob("*.py")
        for name in imports(file, everywhere=everywhere)
        if not {normal(d) for d in known.get(name, [name])} & allowed
    }


def test_every_import_is_declared():
    declared = list(PROJECT["dependencies"])
    for name, rows in PROJECT["optional-dependencies"].items():
        declared += rows if name not in ("dev", "docs") else []
    benchmark_peer = {"transformers"}  # timed beside ours, never needed
    assert outside(distributions(declared) | benchmark_peer, everywhere=True) == set()


def test_the_core_needs_no_extra():
    """Module-level imports are core only; what an extra brings is imported where it is used."""
    assert len(PROJECT["dependencies"]) == 10
    assert outside(distributions(PROJECT["dependencies"]), everywhere=False) == set()
