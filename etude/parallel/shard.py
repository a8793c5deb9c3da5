"""Weights spread over ranks with FSDP2, and put together again."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from etude.errors import EtudeError
from etude.nn.context import Context
from etude.nn.decoder import Decoder
from etude.parallel.mesh import Ranks
from etude.typing import Tensor


def shard(model: Decoder, ranks: Ranks, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """Spread a model over the ranks, in place: every layer for itself, the rest with the root.

    The stored weights stay float32; products run in `dtype`, gradients are reduced in float32, and
    routers stay float32 throughout, for at bfloat16 their scores tie. Gradients are summed over
    ranks, not averaged: the loss is divided by global counts already.

    Args:
        model: the same weights on every rank.
        ranks: without a mesh the model is only moved to the device.
        dtype: of the products, for example bfloat16 on a GPU.

    Returns:
        The same object.

    Raises:
        EtudeError: another dtype than float32 without a mesh, whose shards would hold its copies.
    """
    if ranks.mesh is None:
        if dtype != torch.float32:
            kind = str(dtype).removeprefix("torch.")
            found = f"{kind}, but one process on a CPU multiplies in float32"
            raise EtudeError("dtype", found, do="leave it at auto, or train on a GPU")
        return model.to(ranks.device)
    if isinstance(model, FSDPModule):
        return model
    # nobody writes into what the decoder returns
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    # Inputs are not cast: the embedding gives `dtype` already.
    exact, low = (
        MixedPrecisionPolicy(
            param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for kind in (None, dtype)
    )
    for _, router in model.routers():
        fully_shard(router, mesh=ranks.mesh, mp_policy=exact)
    for layer in [*model.layers, *([model.mtp.layer] if model.mtp else [])]:
        fully_shard(layer, mesh=ranks.mesh, mp_policy=low)
        layer.register_forward_pre_hook(_seal, prepend=True)
        layer.register_forward_pre_hook(_open)
    fully_shard(model, mesh=ranks.mesh, mp_policy=low)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum
    return model


class _Sealed:
    """A context on its way through the hooks of a sharded layer.

    They rebuild every record that holds tensors with gradient, and a layer would write its routes
    into a copy, where they are lost.
    """

    def __init__(self, ctx: Context):
        self.ctx = ctx


def _seal(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_Sealed(arg) if isinstance(arg, Context) else arg for arg in args)


def _open(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.ctx if isinstance(arg, _Sealed) else arg for arg in args)


def gather(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the model whole, on the CPU, one at a time.

    All ranks must iterate together. Buffers are the same on every rank and come as they are.
    """
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield name, whole.detach().cpu()


def whole(model: Decoder, ranks: Ranks, *, everywhere: bool = False) -> dict[str, Tensor]:
    """All tensors by native name, on rank 0 (or `everywhere`); empty on the others.

    What `models.checkpoint.save(state=)` writes, and what a sampler's own copy of the policy loads.
    """
    if ranks.mesh is None:
        return dict(model.state_dict())
    kept = ranks.main or everywhere
    return {name: tensor for name, tensor in gather(model) if kept}
