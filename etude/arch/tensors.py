"""The tensors a description stands for, by native name and shape."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from etude.arch.mixers import MLA, Attention, Lightning, Mamba2
from etude.arch.parts import MLP, AnyNorm, Decoder, Layer, LayerNorm, MoE, Op


class Weight(NamedTuple):
    """One stored tensor, of which the share `used` / `of` works on a token (experts).

    `trained` is false for buffers.
    """

    name: str
    shape: tuple[int, ...]
    used: int = 1
    of: int = 1
    trained: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def active(self) -> int:
        """Number of elements that work on one token."""
        return self.size * self.used // self.of


def _linear(name: str, wide: int, narrow: int, *, bias: bool = False) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (wide, narrow))
    if bias:
        yield Weight(f"{name}.bias", (wide,))


def _attention(dim: int, op: Attention) -> Iterator[Weight]:
    width, kv = op.heads * op.head_dim, op.kv_heads * op.head_dim
    for name, rows in (("q", width), ("k", kv), ("v", kv)):
        yield from _linear(name, rows, dim, bias=op.qkv_bias)
    yield from _linear("o", dim, width, bias=op.out_bias)
    if op.qk_norm:
        yield from (Weight(f"{name}.weight", (op.head_dim,)) for name in ("q_norm", "k_norm"))


def _mla(dim: int, op: MLA) -> Iterator[Weight]:
    if op.q_rank:
        yield from _linear("q_down", op.q_rank, dim, bias=op.bias)
        yield Weight("q_norm.weight", (op.q_rank,))
    yield from _linear("q_up", op.heads * op.key, op.q_rank or dim)
    yield from _linear("kv_down", op.kv_rank + op.rope_dim, dim, bias=op.bias)
    yield Weight("kv_norm.weight", (op.kv_rank,))
    yield from _linear("kv_up", op.heads * (op.nope + op.value), op.kv_rank)
    yield from _linear("o", dim, op.heads * op.value, bias=op.bias)


def _lightning(dim: int, op: Lightning) -> Iterator[Weight]:
    width = op.heads * op.head_dim
    yield from _linear("qkv", 3 * width, dim)
    yield from _linear("gate", width, dim)
    yield Weight("norm.weight", (width,))
    yield from _linear("o", dim, width)


def _mamba2(dim: int, op: Mamba2) -> Iterator[Weight]:
    yield from _linear("in_proj", op.inner + op.channels + op.heads, dim, bias=op.bias)
    yield Weight("conv.weight", (op.channels, 1, op.conv))
    if op.conv_bias:
        yield Weight("conv.bias", (op.channels,))
    yield from (Weight(name, (op.heads,)) for name in ("a_log", "d", "dt_bias"))
    yield Weight("norm.weight", (op.inner,))
    yield from _linear("o", dim, op.inner, bias=op.bias)


def _mlp(dim: int, op: MLP) -> Iterator[Weight]:
    for name in ("gate", "up") if op.gated else ("up",):
        yield from _linear(name, op.hidden, dim, bias=op.bias)
    yield from _linear("down", dim, op.hidden, bias=op.bias)


def _moe(dim: int, op: MoE) -> Iterator[Weight]:
    yield Weight("router.weight", (op.experts, dim))
    if op.router.bias:
        yield Weight("router.bias", (op.experts,), trained=False)
    if op.latent:
        yield from _linear("latent_in", op.latent, dim)
        yield from _linear("latent_out", dim, op.latent)
    for weight in _mlp(op.latent or dim, op.expert):
        name = "experts." + weight.name.removesuffix(".weight")
        yield Weight(name, (op.experts, *weight.shape), op.active, op.experts)
    if op.shared:
        yield from _prefixed("shared", _mlp(dim, op.shared))


def _prefixed(prefix: str, weights: Iterator[Weight]) -> Iterator[Weight]:
    return (weight._replace(name=f"{prefix}.{weight.name}") for weight in weights)


def _op(dim: int, op: Op) -> Iterator[Weight]:
    match op:
        case Attention():
            return _attention(dim, op)
        case MLA():
            return _mla(dim, op)
        case Lightning():
            return _lightning(dim, op)
        case Mamba2():
            return _mamba2(dim, op)
        case MLP():
            return _mlp(dim, op)
        case MoE():
            return _moe(dim, op)


def _norm(name: str, dim: int, norm: AnyNorm) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (dim,))
    if isinstance(norm, LayerNorm):
        yield Weight(f"{name}.bias", (dim,))


def layer_tensors(dim: int, layer: Layer, norm: AnyNorm) -> Iterator[Weight]:
    """List the tensors of one layer, named from the layer on."""
    for part in layer:
        yield from _norm(f"{part.role}.norm", dim, part.norm or norm)
        yield from _prefixed(f"{part.role}.op", _op(dim, part.op))


def tensors(decoder: Decoder) -> Iterator[Weight]:
    """List every tensor of the model under its native name, in the order of the stream."""
    dim, norm = decoder.dim, decoder.norm
    yield Weight("embed.weight", (decoder.vocab, dim))
    if decoder.positions:
        yield Weight("positions.weight", (decoder.positions, dim))
    for i, layer in enumerate(decoder.layers):
        yield from _prefixed(f"layers.{i}", layer_tensors(dim, layer, norm))
    yield from _norm("norm", dim, norm)
    if not decoder.tied:
        yield Weight("head.weight", (decoder.vocab, dim))
    if decoder.mtp:
        yield Weight("mtp.join.weight", (dim, 2 * dim))
        for name in ("embed_norm", "hidden_norm", "norm"):
            yield from _norm(f"mtp.{name}", dim, norm)
        yield from _prefixed("mtp.layer", layer_tensors(dim, decoder.mtp.layer, norm))
