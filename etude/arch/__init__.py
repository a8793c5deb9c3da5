"""Descriptions of models: frozen data that says what a model is, and the arithmetic that follows.

Nothing here needs torch. A decoder is a tuple of layers, a layer a short tuple of residual
sublayers, and each sublayer holds one of a few operations, every one with only its own fields.
`tensors` lists the weights such a description stands for; counts, FLOPs, cache and memory are sums
over that list.
"""

from etude.arch.mixers import (
    MIXERS,
    MLA,
    Attention,
    Banded,
    Lightning,
    Mamba2,
    Mixer,
    Rope,
    YaRN,
)
from etude.arch.parts import (
    MLP,
    MTP,
    AnyNorm,
    Decoder,
    Init,
    Layer,
    LayerNorm,
    MoE,
    Norm,
    Op,
    Residual,
    Router,
    reads_config,
)
from etude.arch.sums import (
    Counts,
    Flops,
    activations,
    cache_bytes,
    count,
    flops,
    flops_by_length,
    forward_flops,
    held,
    memory,
    mixers,
    train_flops,
)
from etude.arch.tensors import Weight, tensors

__all__ = [
    "MIXERS",
    "MLA",
    "MLP",
    "MTP",
    "AnyNorm",
    "Attention",
    "Banded",
    "Counts",
    "Decoder",
    "Flops",
    "Init",
    "Layer",
    "LayerNorm",
    "Lightning",
    "Mamba2",
    "Mixer",
    "MoE",
    "Norm",
    "Op",
    "Residual",
    "Rope",
    "Router",
    "Weight",
    "YaRN",
    "activations",
    "cache_bytes",
    "count",
    "flops",
    "flops_by_length",
    "forward_flops",
    "held",
    "memory",
    "mixers",
    "reads_config",
    "tensors",
    "train_flops",
]
