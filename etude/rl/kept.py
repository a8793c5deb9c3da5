"""Conversations and numbers beside their tokens, kept in one file that is whole or not there."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from etude.errors import EtudeError
from etude.files import atomic
from etude.rl.rows import Told


@dataclass(frozen=True, slots=True)
class Kept:
    """What a stage made once.

    Attributes:
        told: conversations.
        about: what is to be said of them, as JSON.
        values: numbers of each conversation by name, [len(ids) - 1, ...] each: position p holds
            what concerns token p + 1.
    """

    told: list[Told]
    about: dict[str, Any] = field(default_factory=dict)
    values: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)


def save(path: Path, identity: str, kept: Kept) -> None:
    """Write a file; what stood there stays until the end.

    Raises:
        EtudeError: the disk is full or cannot be written.
    """
    arrays: dict[str, Any] = {
        "lengths": np.array([len(one.ids) for one in kept.told], np.int64),
        "ids": np.array([id for one in kept.told for id in one.ids], np.int32),
        "mask": np.array([bit for one in kept.told for bit in one.mask], bool),
        "about": np.array(json.dumps({"identity": identity, "about": kept.about})),
    }
    arrays |= {f"value {name}": np.concatenate(list(v)) for name, v in kept.values.items()}
    with atomic(path) as file:
        np.savez(file, **arrays)


def load(path: Path, identity: str) -> Kept | None:
    """Read what was kept under an identity; None where there is nothing, or another's.

    Raises:
        EtudeError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            known = json.loads(str(file["about"]))
            if known["identity"] != identity:
                return None
            lengths = file["lengths"]
            parts = zip(_cut(file["ids"], lengths), _cut(file["mask"], lengths), strict=True)
            told = [Told(ids.tolist(), mask.tolist()) for ids, mask in parts]
            names = [name for name in file.files if name.startswith("value ")]
            cut = {n.removeprefix("value "): _cut(file[n], lengths - 1) for n in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
        do = "delete it, and it is made again"
        raise EtudeError(str(path), "is damaged", do=do, code=1) from error
    return Kept(told, known["about"], cut)


def _cut(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    if lengths.sum() != len(values):
        raise ValueError("lengths that do not add up")
    return np.split(values, np.cumsum(lengths)[:-1])
