"""What a description stands for: tensors, and the sums over them."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from etude.arch.parts import MLP, Attention, Decoder, Layer, MoE


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
    yield from _linear("o", dim, width)
    if op.qk_norm:
        yield from (Weight(f"{name}.weight", (op.head_dim,)) for name in ("q_norm", "k_norm"))


def _mlp(dim: int, op: MLP) -> Iterator[Weight]:
    for name in ("gate", "up") if op.gated else ("up",):
        yield from _linear(name, op.hidden, dim)
    yield from _linear("down", dim, op.hidden)


def _moe(dim: int, op: MoE) -> Iterator[Weight]:
    yield Weight("router.weight", (op.experts, dim))
    if op.router.bias:
        yield Weight("router.bias", (op.experts,), trained=False)
    for weight in _mlp(dim, op.expert):
        name = "experts." + weight.name.removesuffix(".weight")
        yield Weight(name, (op.experts, *weight.shape), op.active, op.experts)
    if op.shared:
        yield from _prefixed("shared", _mlp(dim, op.shared))


def _prefixed(prefix: str, weights: Iterator[Weight]) -> Iterator[Weight]:
    return (weight._replace(name=f"{prefix}.{weight.name}") for weight in weights)


def _op(dim: int, op: Attention | MLP | MoE) -> Iterator[Weight]:
    match op:
        case Attention():
            return _attention(dim, op)
        case MLP():
            return _mlp(dim, op)
        case MoE():
            return _moe(dim, op)


def _layer(dim: int, layer: Layer) -> Iterator[Weight]:
    for part in layer:
        yield Weight(f"{part.role}.norm.weight", (dim,))
        yield from _prefixed(f"{part.role}.op", _op(dim, part.op))


def tensors(decoder: Decoder) -> Iterator[Weight]:
    """List every tensor of the model under its native name, in the order of the stream."""
    dim = decoder.dim
    yield Weight("embed.weight", (decoder.vocab, dim))
    for i, layer in enumerate(decoder.layers):
        yield from _prefixed(f"layers.{i}", _layer(dim, layer))
    yield Weight("norm.weight", (dim,))
    if not decoder.tied:
        yield Weight("head.weight", (decoder.vocab, dim))
    if decoder.mtp:
        yield Weight("mtp.join.weight", (dim, 2 * dim))
        yield from (
            Weight(f"mtp.{name}.weight", (dim,)) for name in ("embed_norm", "hidden_norm", "norm")
        )
        yield from _prefixed("mtp.layer", _layer(dim, decoder.mtp.layer))


class Counts(NamedTuple):
    """Parameters of a model; buffers count in `stored` only.

    Attributes:
        stored: all numbers in the published files, with buffers and tensors that are written twice.
        trunk: trained parameters with embedding and head, without the MTP block.
        mtp: trained parameters of the MTP block.
        active: parameters of the trunk's body (no embedding, no head) that work on one token.
        active_head: the same with the head.
        parts: trained parameters by part: embed, attention, mlp, router, experts, shared, norm,
            head, mtp.
    """

    stored: int
    trunk: int
    mtp: int
    active: int
    active_head: int
    parts: dict[str, int]


def _part(name: str) -> str:
    if name.startswith("mtp."):
        return "mtp"
    if name.split(".")[0] in ("embed", "head") or "norm" in name.split(".")[-2]:
        return "norm" if "norm" in name else name.split(".")[0]
    if ".mixer." in name:
        return "attention"
    inner = name.split(".op.")[1].split(".")[0]
    return inner if inner in ("router", "experts", "shared") else "mlp"


def count(decoder: Decoder) -> Counts:
    """Count the parameters of a model exactly, from its shapes."""
    parts: dict[str, int] = {}
    buffers = active = 0
    for weight in tensors(decoder):
        if not weight.trained:
            buffers += weight.size
            continue
        part = _part(weight.name)
        parts[part] = parts.get(part, 0) + weight.size
        active += weight.active if part not in ("embed", "head", "mtp") else 0
    mtp = parts.get("mtp", 0)
    trunk = sum(parts.values()) - mtp
    matrix = decoder.vocab * decoder.dim
    copies = 2 * matrix if decoder.mtp and decoder.mtp.copies else 0
    return Counts(trunk + mtp + copies + buffers, trunk, mtp, active, active + matrix, parts)


class Flops(NamedTuple):
    """Floating-point operations of one token: `fixed` + `per_context` * (tokens attended to)."""

    fixed: int
    per_context: int

    def at(self, context: float) -> float:
        """Return the operations of one token that attends to `context` tokens."""
        return self.fixed + self.per_context * context


def _flops(dim: int, layers: tuple[Layer, ...]) -> Flops:
    weights = [w for layer in layers for w in _layer(dim, layer) if w.trained and len(w.shape) > 1]
    mixers = [part.op for layer in layers for part in layer if isinstance(part.op, Attention)]
    quadratic = sum(2 * op.heads * 2 * op.head_dim for op in mixers)
    return Flops(2 * sum(w.active for w in weights), quadratic)


def forward_flops(decoder: Decoder) -> Flops:
    """Return what one generated token costs, head included; a multiply-add counts 2.

    Only matrix products count: no biases, norms, softmax or router sigmoid.
    """
    body = _flops(decoder.dim, decoder.layers)
    return Flops(body.fixed + 2 * decoder.vocab * decoder.dim, body.per_context)


def flops(decoder: Decoder, context: float) -> float:
    """Return the operations of one forward token that attends to `context` tokens."""
    return forward_flops(decoder).at(context)


def train_flops(decoder: Decoder, length: int) -> float:
    """Return the operations per trained token, both ways, in documents of `length` tokens.

    The backward pass costs twice the forward; a token attends to (length + 1) / 2 tokens on
    average. The MTP block and its use of the head count once per depth.
    """
    total = flops(decoder, (length + 1) / 2)
    if decoder.mtp:
        block = _flops(decoder.dim, (decoder.mtp.layer,))
        head_and_join = 2 * decoder.vocab * decoder.dim + 4 * decoder.dim**2
        total += decoder.mtp.depth * (block.at((length + 1) / 2) + head_and_join)
    return 3 * total


def cache_bytes(decoder: Decoder, tokens: int, *, bytes_per: int = 2) -> int:
    """Return the bytes of keys and values of the trunk for `tokens` tokens."""
    mixers = (
        part.op for layer in decoder.layers for part in layer if isinstance(part.op, Attention)
    )
    return sum(2 * op.kv_heads * op.head_dim for op in mixers) * tokens * bytes_per


def _activation(dim: int, layer: Layer) -> int:
    """Count what a layer keeps of a token for the backward pass: inputs of products and norms."""
    kept = 0
    for part in layer:
        kept += 2 * dim
        match part.op:
            case Attention(heads=heads, kv_heads=groups, head_dim=width):
                kept += (3 * heads + 4 * groups) * width
            case MLP(hidden=hidden):
                kept += 4 * hidden
            case MoE(expert=expert, active=active, shared=shared, experts=experts):
                kept += active * (4 * expert.hidden + 3 * dim) + 2 * experts
                kept += 4 * shared.hidden if shared else 0
    return kept


def memory(decoder: Decoder, tokens: int, *, states: int = 2, bytes_per: int = 4) -> int:
    """Estimate the bytes that training holds at its peak, on one device and without recomputation.

    Args:
        decoder: the model.
        tokens: tokens of one micro-batch.
        states: float32 numbers that the optimizer keeps per parameter (2 for AdamW, 1 for Muon).
        bytes_per: bytes of a weight, a gradient and an activation.

    Returns:
        Weights, gradients, optimizer state and activations; the framework's own share is not
        included.
    """
    counts = count(decoder)
    layers = (*decoder.layers, *([decoder.mtp.layer] if decoder.mtp else []))
    kept = sum(_activation(decoder.dim, layer) for layer in layers)
    kept += 4 * decoder.dim
    logits = min(tokens, 1024) * decoder.vocab * 3  # one chunk at a time, see ops.logp
    weights = (counts.trunk + counts.mtp) * (2 * bytes_per + 4 * states)
    return weights + (tokens * kept + logits) * bytes_per
