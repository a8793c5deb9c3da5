"""Which systems there are: by family name, and by the `model_type` of a published config."""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from etude.errors import EtudeError, closest

FAMILIES = ("glm45", "kimi_k2", "nemotron3", "gpt3", "minimax_m1")
NATIVE = "native"  # stands for descriptions that no report published; see `models.native`


def family(name: str) -> ModuleType:
    """Return the module that describes a family: arch, layout, restate, SIZES, MODEL_TYPES, CHAT.

    With more than one of MODEL_TYPES also `respell`, which says a config in the words of another,
    and where models made here are saved in another spelling than that of SIZES, `opened`.

    Raises:
        EtudeError: there is no such family.
    """
    if name not in (*FAMILIES, NATIVE):
        raise _unknown(name)
    return import_module(f"etude.models.{name}")


def _unknown(name: str) -> EtudeError:
    return EtudeError(
        "family", repr(name), f"one of {', '.join(FAMILIES)}", closest(name, FAMILIES)
    )


def by_model_type(hf: Mapping[str, Any]) -> ModuleType:
    """Return the family whose published configs carry this `model_type`.

    Raises:
        EtudeError: the key is missing or no family has it.
    """
    found = hf.get("model_type") if isinstance(hf, Mapping) else None
    known = {kind: name for name in (*FAMILIES, NATIVE) for kind in family(name).MODEL_TYPES}
    if not isinstance(found, str) or found not in known:
        raise EtudeError(
            "config.json: model_type", repr(found), " or ".join(known), closest(str(found), known)
        )
    return family(known[found])


def chat_format(name: str, config: Mapping[str, Any]) -> str | None:
    """Return the name of the chat format of a model, by its family and its config.json.

    None for a system that only continues text.
    """
    return config["chat"] if name == NATIVE else family(name).CHAT


def size(name: str, size: str) -> dict[str, Any]:
    """Return a copy of the published config of a family's size.

    Raises:
        EtudeError: the family or the size does not exist.
    """
    if name == NATIVE:  # each of its descriptions is one of its own
        raise _unknown(name)
    sizes = family(name).SIZES
    if size not in sizes:
        raise EtudeError(
            f"{name} size", repr(size), f"one of {', '.join(sizes)}", closest(size, sizes)
        )
    return dict(sizes[size])


def named(text: str) -> tuple[str, str]:
    """Split "glm45-air" into family and size; a bare family is its released size "full".

    Raises:
        EtudeError: the family or the size does not exist.
    """
    name, dash, wanted = text.partition("-")
    wanted = wanted if dash else "full"
    size(name, wanted)
    return name, wanted
