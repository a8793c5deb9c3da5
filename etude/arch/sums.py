"""Sums over a description: parameters, FLOPs, cache and memory."""

from typing import NamedTuple

from etude.arch.mixers import MIXERS, MLA, Attention, Lightning, Mamba2
from etude.arch.parts import MLP, Decoder, Layer, MoE, Op
from etude.arch.tensors import layer_tensors, tensors

BACKWARD = 1.15  # peak of a pass over what it keeps; ten structures: 0.84 to 1.32 of the measured
LOGITS = 32 << 20  # bytes of a chunk of float32 logits, see ops.logp
KEPT_LOGITS = 256 << 20  # bytes up to which all of a pass are kept there


class Counts(NamedTuple):
    """Parameters of a model; buffers count in `stored` only.

    Attributes:
        stored: all numbers in the published files, with buffers and tensors that are written twice.
        trunk: trained parameters with embedding and head, without the MTP block.
        mtp: trained parameters of the MTP block.
        active: parameters of the trunk's body (no embedding, no head) that work on one token.
        active_head: the same with the head.
        parts: trained parameters by part: embed, positions, mixer, mlp, router, experts, shared,
            latent, norm, head, mtp.
    """

    stored: int
    trunk: int
    mtp: int
    active: int
    active_head: int
    parts: dict[str, int]


def _part(name: str) -> str:
    first, owner = name.split(".")[0], name.split(".")[-2]
    if name.startswith("mtp."):
        return "mtp"
    if first in ("embed", "positions", "head"):
        return first
    if "norm" in owner:
        return "norm"
    if ".mixer." in name:
        return "mixer"
    inner = name.split(".op.")[1].split(".")[0]
    inner = inner.removesuffix("_in").removesuffix("_out")
    return inner if inner in ("router", "experts", "shared", "latent") else "mlp"


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
        active += weight.active if part not in ("embed", "positions", "head", "mtp") else 0
    mtp = parts.get("mtp", 0)
    trunk = sum(parts.values()) - mtp
    matrix = decoder.vocab * decoder.dim
    copies = 2 * matrix if decoder.mtp and decoder.mtp.copies else 0
    return Counts(trunk + mtp + copies + buffers, trunk, mtp, active, active + matrix, parts)


class Flops(NamedTuple):
    """Floating-point operations of one token: `fixed` + `per_context` * (tokens attended to).

    `bands`: (width, operations per token attended to) of what reads only that far back.
    """

    fixed: int
    per_context: int
    bands: tuple[tuple[int, int], ...] = ()

    def at(self, context: float) -> float:
        """Return the operations of one token that attends to `context` tokens."""
        near = sum(per * min(context, width) for width, per in self.bands)
        return self.fixed + self.per_context * context + near


def _flops(decoder: Decoder, layers: tuple[Layer, ...]) -> Flops:
    weights = [w for layer in layers for w in layer_tensors(decoder.dim, layer, decoder.norm)]
    fixed = 2 * sum(w.active for w in weights if w.trained and len(w.shape) > 1)
    quadratic, bands = 0, list[tuple[int, int]]()
    for op in mixers(layers):
        match op:
            case Attention(span=span):
                per = 2 * op.heads * 2 * op.head_dim
                if span is None:
                    quadratic += per
                else:
                    bands.append((span.width, per))
                    quadratic += per // span.stride if span.stride else 0
            case MLA():  # keys and values made once per token, as a prefill does
                quadratic += 2 * op.heads * (op.key + op.value)
            case Lightning():  # the state takes an outer product and gives a row
                fixed += 4 * op.heads * op.head_dim**2
            case Mamba2():
                fixed += 4 * op.inner * op.state
    return Flops(fixed, quadratic, tuple(bands))


def mixers(layers: tuple[Layer, ...]) -> list[Op]:
    """Mixers of some layers, in order."""
    return [part.op for layer in layers for part in layer if isinstance(part.op, MIXERS)]


def forward_flops(decoder: Decoder) -> Flops:
    """Return what one generated token costs, head included; a multiply-add counts 2.

    Only products count: no biases, norms, softmax, decays or router sigmoid.
    """
    body = _flops(decoder, decoder.layers)
    return body._replace(fixed=body.fixed + 2 * decoder.vocab * decoder.dim)


def flops_by_length(decoder: Decoder) -> list[tuple[int, float]]:
    """Return what a token costs behind 8K, 64K and 512K others, and behind the most there can be.

    A context too short for the first of them is shown at a quarter too.
    """
    cost, most = forward_flops(decoder), decoder.max_length
    places = [*([n for n in (8192, 65_536, 524_288) if n < most] or [most // 4]), most]
    return [(n, cost.at(n)) for n in places]


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
        block = _flops(decoder, (decoder.mtp.layer,))
        head_and_join = 2 * decoder.vocab * decoder.dim + 4 * decoder.dim**2
        total += decoder.mtp.depth * (block.at((length + 1) / 2) + head_and_join)
    return 3 * total


def cache_bytes(decoder: Decoder, tokens: int, *, bytes_per: int = 2) -> int:
    """Return the bytes that the trunk remembers of one sequence of `tokens` tokens.

    Keys and values, or their latent, grow with the tokens; states do not, and are float32.
    """
    total = 0
    for op in mixers(decoder.layers):
        match op:
            case Attention(span=span):
                held = min(tokens, span.width) if span and span.stride is None else tokens
                total += 2 * op.kv_heads * op.head_dim * held * bytes_per
            case MLA():
                total += (op.kv_rank + op.rope_dim) * tokens * bytes_per
            case Lightning():
                total += 4 * op.heads * op.head_dim**2
            case Mamba2():
                total += 4 * op.inner * op.state + op.channels * (op.conv - 1) * bytes_per
    return total


def _activation(dim: int, layer: Layer) -> int:
    """Count what a layer keeps of a token for the backward pass: inputs of products and norms."""
    kept = 0
    for part in layer:
        kept += 2 * dim
        match part.op:
            case Attention(heads=heads, kv_heads=groups, head_dim=width, qk_norm=normed):
                kept += (2 * heads + 2 * groups + (heads + groups if normed else 0)) * width
            case MLA() as op:
                kept += 2 * ((op.q_rank or 0) + op.kv_rank) + op.heads * (3 * op.key + 2 * op.value)
            case Lightning() as op:
                kept += 12 * op.heads * op.head_dim
            case Mamba2() as op:
                kept += 9 * op.inner + 3 * op.channels + 3 * op.heads
            case MLP(hidden=hidden, gated=gated):
                kept += (4 if gated else 2) * hidden
            case MoE(expert=expert, active=active, shared=shared, experts=experts):
                kept += active * (2 * expert.hidden + 2 * dim) + 2 * experts
                kept += 4 * shared.hidden if shared else 0
    return kept


def activations(decoder: Decoder, tokens: int, *, bytes_per: int = 4) -> int:
    """Estimate the bytes that a micro-batch needs beside the weights, without recomputation.

    What the layers keep for the backward pass is counted; the passing gradients on top are BACKWARD
    times it, as measured at the peak of a step.
    """
    layers = (*decoder.layers, *([decoder.mtp.layer] if decoder.mtp else []))
    kept = sum(_activation(decoder.dim, layer) for layer in layers) + 4 * decoder.dim
    chunk = min(tokens, max(64, LOGITS // (4 * decoder.vocab)))  # of ops.logp, three at once
    whole = 4 * tokens * decoder.vocab
    logits = 3 * 4 * chunk * decoder.vocab + (whole if whole <= KEPT_LOGITS else 0)
    return int(tokens * kept * bytes_per * BACKWARD) + logits


def held(decoder: Decoder, *, states: int = 2, bytes_per: int = 4) -> int:
    """Bytes of weights, gradients and `states` float32 numbers of an optimizer per parameter."""
    counts = count(decoder)
    return (counts.trunk + counts.mtp) * (2 * bytes_per + 4 * states)


def memory(decoder: Decoder, tokens: int, *, states: int = 2, devices: int = 1) -> int:
    """Estimate the bytes that float32 training holds at its peak on each of some devices.

    The peak is that of the backward pass or of the optimizer's step, whose temporaries are twice
    the parameters for AdamW and nearly five times for Muon.

    Args:
        decoder: the model.
        tokens: tokens of one micro-batch.
        states: float32 numbers that the optimizer keeps per parameter (2 for AdamW, 1 for Muon).
        devices: that share weights, gradients, optimizer state and step evenly.

    Returns:
        Bytes without the framework's own share (about 250 MB).
    """
    counts = count(decoder)
    step = (counts.trunk + counts.mtp) * 4 * (2 if states > 1 else 4.6)
    whole = held(decoder, states=states) / devices
    return int(whole + max(activations(decoder, tokens), step / devices))
