"""First values of a model's weights, from a seed alone."""

import math

import torch
from torch import nn

from etude import arch
from etude.files import digest
from etude.nn.decoder import Decoder
from etude.nn.lightning import Lightning
from etude.nn.mamba2 import Conv, Mamba2
from etude.typing import Tensor

# what ends a residual branch; the whole last names, since a latent has its own `kv_down`
OUT = (
    *("op.o.weight", "op.down.weight", "shared.down.weight"),
    *("experts.down", "latent_out.weight"),
)
DEEP = (  # what DeepNorm scales, beside the values of lightning attention
    *(*OUT, "op.v.weight", "op.up.weight", "shared.up.weight", "experts.gate", "experts.up"),
    *("ffn.op.gate.weight", "shared.gate.weight"),  # a mixer's output gate is not one of them
)
JOINT = "qkv.weight"  # lightning's: per head the rows of q, of k and of v


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> Decoder:
    """Fill every parameter and buffer: matrices and tables by the rule, biases 0, norms 1.

    Each tensor draws from its own generator, keyed by seed and name, so that neither the global
    state nor another part of the model moves it. The description's `init` gives the standard
    deviation and what the outputs of residual branches are multiplied by. A state
    space decides on its step sizes and decays itself.

    Args:
        model: a decoder as `nn.build.decoder` makes it.
        seed: any integer.

    Returns:
        The same model.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        generator = torch.Generator().manual_seed(int(digest(str(seed), name), 16) % 2**63)
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        own = owner.start(leaf, generator) if isinstance(owner, Mamba2 | Conv) else None
        value = own if own is not None else _first(name, tensor, model.arch.init, generator)
        mixer = model.get_submodule(path.rpartition(".")[0])
        if name.endswith(JOINT) and isinstance(mixer, Lightning):
            value.view(mixer.arch.heads, 3, -1)[:, 2] *= model.arch.init.gain
        tensor.copy_(value)
    return model


def _first(name: str, tensor: Tensor, init: arch.Init, generator: torch.Generator) -> Tensor:
    # drawn on the CPU in float32: the same values whatever the device and dtype
    draw = torch.empty(tensor.shape, dtype=torch.float32)
    if tensor.ndim < 2:
        return draw.fill_(0.0 if name.endswith("bias") else 1.0)
    rows = tensor.shape[-2] // (3 if name.endswith(JOINT) else 1)
    std = init.std if init.rule == "normal" else math.sqrt(2 / (rows + tensor.shape[-1]))
    std *= init.residual if name.endswith(OUT) else 1.0
    std *= init.gain if name.endswith(DEEP) else 1.0
    if name == "positions.weight" and init.positions is not None:
        std = init.positions
    return nn.init.normal_(draw, std=std, generator=generator)
