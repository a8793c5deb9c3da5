"""Attempts as JSON and back: what a resumed run needs of those that are not trained yet."""

import base64
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from etude.rl.sample import Sample

APART = ("mask", "replies", "routes")  # the rest is JSON as it stands


def freeze(sample: Sample) -> dict[str, Any]:
    """Return all of a sample but its parsed replies, which its ids tell."""
    kept = {f.name: getattr(sample, f.name) for f in fields(sample) if f.name not in APART}
    kept["mask"] = [int(own) for own in sample.mask]
    if sample.routes is not None:
        found = sample.routes.to(torch.int16).contiguous().numpy()
        kept["routes"] = [list(found.shape), base64.b64encode(found.tobytes()).decode()]
    return kept


def thaw(kept: Mapping[str, Any]) -> Sample:
    """Return a sample that was frozen, without its parsed replies."""
    found = dict(kept)
    found["mask"] = [bool(own) for own in found["mask"]]
    if "routes" in found:
        shape, text = found["routes"]
        values = np.frombuffer(base64.b64decode(text), dtype=np.int16).reshape(shape)
        found["routes"] = torch.from_numpy(values.copy())
    return Sample(**found)


def turns(sample: Sample) -> list[list[int]]:
    """The policy's turns, as ids; observations stand between them."""
    found: list[list[int]] = []
    before = False
    for id, own in zip(sample.ids, sample.mask, strict=True):
        if own and not before:
            found.append([])
        if own:
            found[-1].append(id)
        before = own
    return found
