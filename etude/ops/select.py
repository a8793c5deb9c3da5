"""Which twin runs: by device, sizes and what is there; never by an environment variable."""

from typing import Any, Literal

import torch
import torch.nn.functional as F

from etude.ops import experts, native
from etude.typing import Tensor

Twin = Literal["loop", "group", "slice", "index", "native"]
FEW_PAIRS = 8  # token-expert pairs up to which "index" beats "slice" (one core, measured)
FEW_NATIVE = 128  # the same up to which a kernel that has been built beats both
FEW_INT8 = 1024  # and up to which it beats making float32 experts of int8 ones
SMALL_STACK = 64 << 20  # numbers of a stack that is worth a second copy laid out for serving


def kernels(x: Tensor, *, always: bool = False) -> Any:
    """The kernels of `native` where they are lent, or `always`, and can take `x`; else None."""
    fast = native.built() if always else native.used()
    if fast is None or x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    return None if torch.is_grad_enabled() else fast


def experts_twin(
    x: Tensor,
    active: int,
    stack: experts.Stack,
    *,
    serving: bool,
    int8: bool = False,
    fused: bool = True,
) -> Twin:
    """Choose how to run `active` experts of a stack on each of the tokens `x` [N, D].

    Args:
        x: the tokens.
        active: experts per token.
        stack: weights of all experts.
        serving: weights stay as they are for many passes, so that for few tokens a copy of them
            pays, and no gradient is recorded.
        fused: "native" knows their activation.
        int8: the experts are rounded, and float32 ones are made for any twin but "native".
    """
    few = FEW_INT8 if int8 else FEW_NATIVE
    fused = fused and (serving or int8) and x.shape[0] * active <= few
    if fused and kernels(x, always=int8) is not None:
        return "native"
    if not serving or x.device.type != "cpu":
        return "group"
    copied = not int8 and stack.up.numel() <= SMALL_STACK
    return "index" if copied and x.shape[0] * active <= FEW_PAIRS else "slice"


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
