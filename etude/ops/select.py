"""Which twin runs: by device, sizes and what is there; never by an environment variable."""

from typing import Literal

import torch
import torch.nn.functional as F

from etude.ops import experts
from etude.typing import Tensor

Twin = Literal["loop", "group", "index"]
FEW_PAIRS = 8  # token-expert pairs up to which "index" beats "group" (one core, measured)
SMALL_STACK = 64 << 20  # numbers of a stack that is worth a second copy laid out for gathering


def experts_twin(x: Tensor, active: int, stack: experts.Stack, *, serving: bool) -> Twin:
    """Choose how to run `active` experts of a stack on each of the tokens `x` [N, D].

    Args:
        x: the tokens.
        active: experts per token.
        stack: weights of all experts.
        serving: weights stay as they are for many passes, so that a copy laid out for gathering
            pays.
    """
    few = x.shape[0] * active <= FEW_PAIRS
    if serving and few and x.device.type == "cpu" and stack.up.numel() <= SMALL_STACK:
        return "index"
    return "group"


def experts_product(x: Tensor) -> experts.Product:
    """Choose how sorted rows are multiplied: by a grouped kernel where there is one."""
    if x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
        return experts.grouped
    return experts.slices
