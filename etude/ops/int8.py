"""A matrix of bytes that products read: it stands where a float32 matrix stood."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from etude.ops.quant import linear_int8, unpack_int8
from etude.ops.select import kernels
from etude.typing import Float, Int, Tensor

FEW = 32  # rows up to which the kernel beats making float32 matrices for one product (measured)


class Int8Weight(torch.Tensor):
    """A matrix [R, C] of bytes that stands where a float32 matrix stood.

    Products with it, and joining, taking or reordering its rows, work on the bytes; anything else
    sees the matrix that they mean, in the dtype of the scale.

    Args:
        values: int8.
        scale: what multiplies each row; float32 unless the model was moved to another dtype.
    """

    int8: Int[Tensor, "R C"]
    scale: Float[Tensor, " R"]

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> "Int8Weight":
        """Make a tensor without memory of its own, of the shape and device of `values`."""
        how = {"dtype": scale.dtype, "device": values.device, "requires_grad": False}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, **how)
        made.int8, made.scale = values, scale
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Use the bytes where that is possible."""
        own, kwargs = _OWN.get(func), kwargs or {}
        made = own(*args, **kwargs) if own else NotImplemented
        if made is not NotImplemented:
            return made
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # pyrefly: ignore[bad-override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do anything else with the matrix that is meant."""
        args, kwargs = tree_map(_meant, (args, kwargs or {}))
        return func(*args, **kwargs)


def _meant(part: Any) -> Any:
    if not isinstance(part, Int8Weight):
        return part
    return unpack_int8(part.int8, part.scale, dtype=part.scale.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, Int8Weight):
        return NotImplemented
    fast = kernels(x, always=True)
    if fast is not None and x.numel() <= FEW * x.shape[-1]:
        return fast.linear(x, weight.int8, weight.scale, bias)
    return linear_int8(x, weight.int8, weight.scale, bias)


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Any:
    held = [part for part in parts if isinstance(part, Int8Weight)]
    if dim or len(held) < len(parts):
        return NotImplemented
    values, scales = [part.int8 for part in held], [part.scale for part in held]
    return Int8Weight(torch.cat(values), torch.cat(scales))


def _rows(weight: Tensor, index: Any) -> Any:
    whole = isinstance(index, slice) or (isinstance(index, torch.Tensor) and index.ndim == 1)
    if not (whole and isinstance(weight, Int8Weight)):
        return NotImplemented
    return Int8Weight(weight.int8[index], weight.scale[index])


def _wide(weight: Int8Weight, **_: Any) -> Any:
    return Int8Weight(weight.int8, weight.scale.float())


_OWN: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.cat: _cat,
    torch.Tensor.__getitem__: _rows,
    torch.Tensor.float: _wide,
}


def stored(weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a kernel reads: the matrices, and the scales of those that are rounded."""
    scales = [weight.scale for weight in weights if isinstance(weight, Int8Weight)]
    held = [weight.int8 if isinstance(weight, Int8Weight) else weight for weight in weights]
    return held, scales
