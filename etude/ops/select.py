"""Which twin runs: by device, sizes and what is there; never by an environment variable."""

from typing import Literal

import torch
import torch.nn.functional as F

from etude.ops import experts
from etude.typing import Tensor

Twin = Literal["loop", "group", "slice", "index"]
FEW_PAIRS = 8  # token-expert pairs up to which "index" beats "slice" (one core, measured)
SMALL_STACK = 64 << 20  # numbers of a stack that is worth a second copy laid out for serving


def experts_twin(x: Tensor, active: int, stack: experts.Stack, *, serving: bool) -> Twin:
    """Choose how to run `active` experts of a stack on each of the tokens `x` [N, D].

    Args:
        x: the tokens.
        active: experts per token.
        stack: weights of all experts.
        serving: weights stay as they are for many passes, so that a copy of them pays, and no
            gradient is recorded.
    """
    if serving and x.device.type == "cpu" and stack.up.numel() <= SMALL_STACK:
        return "index" if x.shape[0] * active <= FEW_PAIRS else "slice"
    return "group"


def experts_product(x: Tensor) -> experts.Product:
    """Choose how sorted rows are multiplied: by a grouped kernel where there is one."""
    if x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        return experts.grouped
    return experts.slices


def banded_twin(length: int, width: int, stride: int | None) -> Literal["mask", "blocks"]:
    """Choose how whole rows of `length` tokens attend within a band of `width`.

    Blocks compute two blocks of keys per query, and with a stride without a fused kernel. Measured
    on one core, 6 heads of 64, both ways: 2048 tokens 307 to 75 ms at width 128, with a stride of
    128 to 128 ms; nothing is won below four widths, or with a stride below six times the keys.
    """
    if stride is None:
        return "blocks" if length >= 4 * width else "mask"
    return "blocks" if length >= 6 * (2 * width + length // stride) else "mask"
