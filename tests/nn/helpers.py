"""A small decoder with every part in use, and random rows for it."""

import torch

from etude import arch
from etude.arch import MLP, MTP, Attention, Decoder, Init, MoE, Residual, Rope, Router
from etude.nn import build
from etude.nn.decoder import Decoder as Model
from etude.nn.init import initialise

VOCAB = 40


def description(*, groups: int = 1, mtp: int = 1, qk_norm: bool = True) -> Decoder:
    """Two layers, one dense, with biases, norms and a part of each head turning."""
    mix = Residual(
        Attention(4, 2, 8, qkv_bias=True, qk_norm=qk_norm, rope=Rope(theta=100.0, fraction=0.5))
    )
    router = Router(bias=True, groups=groups, group_topk=max(1, groups // 2), scale=2.5)
    sparse = Residual(MoE(expert=MLP(12), experts=8, active=2, shared=MLP(12), router=router))
    return Decoder(
        dim=16,
        vocab=VOCAB,
        layers=((mix, Residual(MLP(24))), (mix, sparse), (mix, sparse)),
        mtp=MTP(depth=mtp, layer=(mix, sparse)) if mtp else None,
        max_length=64,
        init=Init(std=0.3),
    )


def model(**how: int | bool) -> Model:
    """Build it with weights that make every term count: no bias is 0 and no norm 1."""
    made = initialise(build.decoder(description(**how)), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.ndim == 1:
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    return made


def rows(*lengths: int) -> list[torch.Tensor]:
    """Random rows of the given lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, VOCAB, (n,), generator=generator) for n in lengths]


def names(description: arch.Decoder) -> dict[str, tuple[int, ...]]:
    """Names and shapes a description stands for."""
    return {w.name: w.shape for w in arch.tensors(description)}
