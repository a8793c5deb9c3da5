"""Recorded checkpoints and what transformers computed from them."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.safetensors"))


@dataclass
class Case:
    """A checkpoint folder and the outputs recorded from it."""

    path: Path
    told: dict[str, Tensor]


def read(name: str) -> Case:
    """Read a recorded case."""
    path = FIXTURES / name
    return Case(path, load_file(path / "expected.safetensors"))
