"""Recorded checkpoints and what transformers computed from them."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
# <family>-<case>; the module of a family beside this one makes its cases
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.safetensors"))
BOUND = 5e-5  # of logits; `test_published_outputs` says what was measured


@dataclass
class Case:
    """A checkpoint folder and the outputs recorded from it."""

    path: Path
    told: dict[str, Tensor]


def read(name: str) -> Case:
    """Read a recorded case."""
    path = FIXTURES / name
    return Case(path, load_file(path / "expected.safetensors"))


def names(family: str) -> list[str]:
    """Recorded cases of a family."""
    return [name for name in NAMES if name.partition("-")[0] == family]


def families() -> dict[str, ModuleType]:
    """Modules that make the cases, by family: CASES, make, reopen."""
    found = sorted({name.partition("-")[0] for name in NAMES})
    return {family: import_module(f"tests.parity.{family}") for family in found}
