"""One checkpoint from several of the same run."""

from collections.abc import Sequence
from pathlib import Path

import torch

from etude.errors import EtudeError
from etude.models import checkpoint
from etude.nn.decoder import Decoder


def merge(sources: Sequence[str | Path], weights: Sequence[float], target: str | Path) -> None:
    """Write the weighted sum of checkpoints, in float32 and the layout of the first.

    Args:
        sources: folders, one weight each.
        weights: that sum to 1.
        target: folder to write, as for `checkpoint.save`.

    Raises:
        EtudeError: a source that cannot be read, or is another model than the first.
    """
    total: Decoder | None = None
    for source, weight in zip(sources, weights, strict=True):
        model = checkpoint.load(source)
        if total is None:
            total = model
            _scale(model, weight)
        elif model.arch != total.arch:
            where, first = str(source), str(sources[0])
            raise EtudeError(where, "is another model", f"that of {first}", "merge one run's own")
        else:
            _add(total, model, weight)
    if total is None:
        raise EtudeError("merge", "no checkpoint", "at least one")
    checkpoint.save(total, target)


@torch.no_grad()
def _scale(model: Decoder, weight: float) -> None:
    for value in model.state_dict().values():
        value.mul_(weight)


@torch.no_grad()
def _add(total: Decoder, model: Decoder, weight: float) -> None:
    for value, other in zip(total.state_dict().values(), model.state_dict().values(), strict=True):
        value.add_(other, alpha=weight)
