"""From a description to modules: one `match` per union."""

from typing import TYPE_CHECKING

from torch import nn

from etude import arch
from etude.nn.attention import Attention
from etude.nn.mlp import MLP
from etude.nn.moe import MoE
from etude.nn.norm import Norm

if TYPE_CHECKING:
    from etude.nn.decoder import Decoder


def norm(dim: int, description: arch.Norm) -> nn.Module:
    """Build a norm over `dim` values."""
    return Norm(dim, description)


def op(
    dim: int, description: arch.Attention | arch.MLP | arch.MoE, default: arch.Norm
) -> nn.Module:
    """Build the operation of a sublayer; `default` is the decoder's norm, for norms inside it."""
    match description:
        case arch.Attention():
            return Attention(dim, description, default)
        case arch.MLP():
            return MLP(dim, description)
        case arch.MoE():
            return MoE(dim, description)


def decoder(description: arch.Decoder) -> "Decoder":
    """Build a decoder on the current default device; its float32 parameters have no value yet.

    Fill them with `nn.init.initialise` or from a checkpoint.
    """
    from etude.nn.decoder import Decoder

    return Decoder(description)
