"""From a description to modules: one `match` per union."""

from typing import TYPE_CHECKING

from torch import nn

from etude import arch
from etude.nn.attention import Attention
from etude.nn.lightning import Lightning
from etude.nn.mamba2 import Mamba2
from etude.nn.mla import MLA
from etude.nn.mlp import MLP
from etude.nn.moe import MoE
from etude.nn.norm import LayerNorm, Norm

if TYPE_CHECKING:
    from etude.nn.decoder import Decoder


def norm(dim: int, description: arch.AnyNorm) -> nn.Module:
    """Build a norm over `dim` values."""
    match description:
        case arch.Norm():
            return Norm(dim, description)
        case arch.LayerNorm():
            return LayerNorm(dim, description)


def op(dim: int, description: arch.Op, default: arch.AnyNorm) -> nn.Module:
    """Build the operation of a sublayer; `default` is the decoder's norm, for norms inside it."""
    match description:
        case arch.Attention():
            return Attention(dim, description, default)
        case arch.MLA():
            return MLA(dim, description)
        case arch.Lightning():
            return Lightning(dim, description)
        case arch.Mamba2():
            return Mamba2(dim, description, default)
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
