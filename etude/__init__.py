"""Frontier language-model systems, end to end: architectures, training stages, inference.

Everything here is loaded when it is first used, so that `import etude` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etude import engine as engine
    from etude.engine.complete import complete as generate
    from etude.models.checkpoint import create, load, save
    from etude.run import train

__version__ = "0.1.0"
__all__ = ["__version__", "create", "engine", "generate", "load", "save", "train"]

_HOME = {
    "create": ("etude.models.checkpoint", "create"),
    "generate": ("etude.engine.complete", "complete"),
    "load": ("etude.models.checkpoint", "load"),
    "save": ("etude.models.checkpoint", "save"),
    "train": ("etude.run", "train"),
}


def __getattr__(name: str) -> Any:
    if name == "engine":
        return import_module("etude.engine")
    if name not in _HOME:
        raise AttributeError(f"module 'etude' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
