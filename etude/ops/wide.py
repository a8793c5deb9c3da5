"""The dtype that sums are taken in, whatever the values are stored in."""

import torch

from etude.typing import Tensor


def at_least_float32(x: Tensor) -> torch.dtype:
    """Return float32, or the dtype of `x` where that is wider."""
    return torch.promote_types(x.dtype, torch.float32)
