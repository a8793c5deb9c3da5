"""First values of a model's weights, from a seed alone."""

import torch
from torch import nn

from etude.files import digest
from etude.nn.decoder import Decoder
from etude.typing import Tensor


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> Decoder:
    """Fill every parameter and buffer: matrices and tables normal, biases 0, norms 1.

    Each tensor draws from its own generator, keyed by seed and name, so that neither the global
    state nor another part of the model moves it. The standard deviation is the description's
    `init_std`, the same for all matrices: the report gives no scaling of the outputs of residual
    branches, so none is done.

    Args:
        model: a decoder as `nn.build.decoder` makes it.
        seed: any integer.

    Returns:
        The same model.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _fill(name, tensor, seed, model.arch.init_std)
    return model


def _fill(name: str, tensor: Tensor, seed: int, std: float) -> None:
    if tensor.ndim > 1:
        # drawn on the CPU in float32: the same values whatever the device and dtype
        generator = torch.Generator().manual_seed(int(digest(str(seed), name), 16) % 2**63)
        nn.init.normal_(draw := torch.empty(tensor.shape), std=std, generator=generator)
        tensor.copy_(draw)
    else:
        tensor.fill_(0.0 if name.endswith("bias") else 1.0)
