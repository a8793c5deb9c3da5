"""Weights of one byte for inference: rounded in place, read by the same modules.

Every linear map and every stack of experts becomes int8 with one float32 scale per output; the
head counts as a linear map, and a tied one gets a rounded copy, for the embedding is only looked
up. The router, norms, biases, convolutions and what a recurrence learns stay as they are.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.nn.linear import Linear
from etude.nn.moe import Experts
from etude.ops import native
from etude.ops.int8 import Int8Weight
from etude.ops.quant import pack_int8
from etude.typing import Float, Tensor


class Int8Linear(nn.Module):
    """A product with a weight of bytes, and the bias as it was."""

    def __init__(self, weight: Float[Tensor, "R C"], bias: Tensor | None = None):
        super().__init__()
        values, scale = pack_int8(weight)
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.bias = bias
        self.out_features, self.in_features = weight.shape

    @property
    def weight(self) -> Float[Tensor, "R C"]:
        """The matrix as modules read it."""
        return Int8Weight(self.values, self.scale)

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... R"]:
        """Multiply."""
        return F.linear(x, self.weight, self.bias)


def check(weights: str) -> None:
    """Refuse what is not a way to hold weights.

    Raises:
        EtudeError: neither "stored" nor "int8".
    """
    if weights not in ("stored", "int8"):
        raise EtudeError("weights", repr(weights), "stored or int8")


def served(model: Decoder, *, weights: str, kernels: bool) -> Decoder:
    """Make a decoder ready for inference as a user asked: rounded in place, kernels built.

    Raises:
        EtudeError: weights of neither kind, or as `int8_`.
    """
    check(weights)
    if kernels and native.build():
        model.kernels = True
    return int8_(model) if weights == "int8" else model


def int8(model: Decoder) -> Decoder:
    """Return a rounded copy of a decoder, or the decoder itself where it is one.

    Raises:
        EtudeError: as `int8_`.
    """
    return model if isinstance(model.head, Int8Linear) else int8_(deepcopy(model))


@torch.no_grad()
def int8_(model: Decoder) -> Decoder:
    """Round the weights of a decoder to int8, in place and for inference only.

    On a CPU the kernels of `ops.native` are built, if they have not been, and an engine of this
    model uses them; without them the weights take as little memory, but every pass makes float32
    matrices of them.

    Returns:
        The model, which holds about a quarter of the bytes. It can be neither trained nor saved.

    Raises:
        EtudeError: its weights are not float32, or int8 already.
    """
    weight = model.embed.weight
    if isinstance(model.head, Int8Linear):
        raise EtudeError("int8", "the weights are int8 already")
    if weight.dtype != torch.float32:
        raise EtudeError("int8", f"weights of {weight.dtype}", "float32 ones")
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, Experts):
            module.round()
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, Int8Linear(child.weight, child.bias))
    if model.head is None:
        model.head = Int8Linear(weight)  # pyrefly: ignore[bad-assignment]
    if weight.device.type == "cpu":
        model.kernels = native.build()
    return model
