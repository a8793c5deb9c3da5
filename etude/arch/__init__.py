"""Descriptions of models: frozen data that says what a model is, and the arithmetic that follows.

Nothing here needs torch. A decoder is a tuple of layers, a layer a short tuple of residual
sublayers, and each sublayer holds one of a few operations, every one with only its own fields.
`tensors` lists the weights such a description stands for; counts, FLOPs, cache and memory are sums
over that list.
"""

from etude.arch.parts import (
    MLP,
    MTP,
    Attention,
    Decoder,
    Layer,
    MoE,
    Norm,
    Op,
    Residual,
    Rope,
    Router,
    reads_config,
)
from etude.arch.sums import (
    Counts,
    Flops,
    Weight,
    cache_bytes,
    count,
    flops,
    forward_flops,
    memory,
    tensors,
    train_flops,
)

__all__ = [
    "MLP",
    "MTP",
    "Attention",
    "Counts",
    "Decoder",
    "Flops",
    "Layer",
    "MoE",
    "Norm",
    "Op",
    "Residual",
    "Rope",
    "Router",
    "Weight",
    "cache_bytes",
    "count",
    "flops",
    "forward_flops",
    "memory",
    "reads_config",
    "tensors",
    "train_flops",
]
