"""Swapping parts: the same model with another mixer, feed-forward, router or norm.

A swap keeps the model's width, its layers, and the heads and head width of the attention it
replaces; what a new part needs beyond that follows from those by the rules below. `match` then
brings the parameters or the FLOPs back to what they were by the width of the feed-forwards.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

from etude.arch.mixers import (
    MIXERS,
    MLA,
    Attention,
    Banded,
    Lightning,
    Mamba2,
    Rope,
)
from etude.arch.parts import MLP, AnyNorm, Decoder, Layer, LayerNorm, MoE, Norm, Op, Router
from etude.arch.sums import count, train_flops
from etude.errors import EtudeError, closest

MixerKind = Literal["attention", "banded", "linear", "lightning", "mamba2", "mla"]
FfnKind = Literal["mlp", "moe", "swiglu", "relu2", "gelu"]
RouterKind = Literal["sigmoid", "softmax", "sigmoid+bias"]
NormKind = Literal["rms", "layer"]
MatchKind = Literal["params", "flops"]

WINDOW = 64  # tokens that banded attention reads where none are asked for; our choice
LATENT = 4  # MLA's latent in head widths, as 512 is to 128 in DeepSeek-V2 and its heirs
EXPERTS, ACTIVE = 8, 2  # of a dense feed-forward made sparse; our choice
STEP = 8  # matched widths are multiples of it


def swap(
    decoder: Decoder,
    *,
    mixer: MixerKind | None = None,
    every: int | None = None,
    window: int = WINDOW,
    ffn: FfnKind | None = None,
    router: RouterKind | None = None,
    norm: NormKind | None = None,
) -> Decoder:
    """Return a model with other parts; what is None stays.

    Mixers, for one of H heads of width K with G key/value heads:

    - attention: softmax over all tokens; one that is attention already stays as it is.
    - banded: the same, which reads only the last `window` tokens.
    - linear, lightning: H heads of width K; lightning's decay in layer l of L is
      1 - l / (L - 1) + 1e-5 (arXiv:2501.08313, and its code), linear forgets nothing.
    - mamba2: H heads of width K, state K, G groups.
    - mla: keys of width K, of which the dimensions that turned still turn (half, where all or none
      did); values of width K; a latent of 4 K; queries not compressed.

    Feed-forwards: `mlp` makes each mixture of experts one dense part as wide as what a token used
    of it; `moe` makes each dense part sparse, like the model's own mixtures or else 8 experts of
    half its width, 2 active; `swiglu`, `relu2` and `gelu` (both without a gate) change the function
    and keep the width.

    Args:
        decoder: the model.
        mixer: what mixes positions.
        every: the mixers number N, 2 N, ... stay as they are; 8 is the 7:1 pattern of
            MiniMax-Text-01. An extra prediction block counts on from the trunk.
        window: tokens that `banded` reads.
        ffn: the feed-forwards.
        router: score of the experts, with or without a selection bias.
        norm: of the stream; the norms inside of mixers stay.

    Raises:
        EtudeError: no such part, or a model that has nothing to swap.
    """
    for key, value, kinds in (
        ("mixer", mixer, MixerKind),
        ("ffn", ffn, FfnKind),
        ("router", router, RouterKind),
        ("norm", norm, NormKind),
    ):
        _known(key, value, get_args(kinds))
    layers = list(_layers(decoder))
    if mixer is not None:
        layers = _mixers(decoder, layers, mixer, every, window)
    if ffn is not None:
        own = next((op for op in _ops(layers) if isinstance(op, MoE)), None)
        layers = [_each(layer, lambda op: _ffn(ffn, op, own)) for layer in layers]
    if router is not None:
        if not any(isinstance(op, MoE) for op in _ops(layers)):
            raise EtudeError("model.router", router, "a model with experts", "add model.ffn=moe")
        layers = [_each(layer, lambda op: _router(router, op)) for layer in layers]
    swapped = _with_layers(decoder, layers)
    return swapped if norm is None else _norms(swapped, norm)


class Match(NamedTuple):
    """What `match` reached.

    Attributes:
        decoder: the model with other feed-forward widths.
        factor: what the widths were multiplied by, before rounding.
        reached: parameters or FLOPs of the result, over those of the target.
    """

    decoder: Decoder
    factor: float
    reached: float


def match(decoder: Decoder, target: Decoder, by: MatchKind, *, length: int) -> Match:
    """Scale all feed-forward widths by one factor until two models weigh the same.

    Widths are rounded to multiples of 8, so narrow experts move in steps: `reached` says how close.

    Args:
        decoder: the model to change.
        target: the model to be equal to.
        by: "params" counts all trained parameters, "flops" the forward operations of a token.
        length: tokens of a document, for the operations.

    Raises:
        EtudeError: no such measure, no feed-forward, or its width cannot make up the difference.
    """
    _known("match", by, get_args(MatchKind))
    wanted = weigh(target, by, length)
    if weigh(decoder, by, length) == wanted:
        return Match(decoder, 1.0, 1.0)
    if not widths(decoder):
        raise EtudeError("model.match", "this model has no feed-forward to adjust")

    def over(factor: float) -> float:
        return weigh(_scaled(decoder, factor), by, length) / wanted

    low, high = 0.0, 1.0
    if over(low) > 1:
        found = f"the other parts alone have {over(low):.2f} times the {by} to be matched"
        raise EtudeError("model.match", found, do="match by the other measure, or swap fewer parts")
    while over(high) < 1:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if over(middle) < 1 else (low, middle)
    factor = min(low, high, key=lambda factor: abs(over(factor) - 1))
    return Match(_scaled(decoder, factor), factor, over(factor))


def weigh(decoder: Decoder, by: MatchKind, length: int) -> float:
    """Return trained parameters, or forward FLOPs per token in documents of `length` tokens."""
    if by == "params":
        counts = count(decoder)
        return counts.trunk + counts.mtp
    return train_flops(decoder, length) / 3  # the backward pass costs twice the forward


def compare(before: Decoder, after: Decoder, length: int) -> str:
    """Return a block of text: parameters, FLOPs and feed-forward widths before and after."""
    counts = count(before), count(after)
    rows = [
        ("parameters", *(float(found.trunk + found.mtp) for found in counts)),
        ("active per token", *(float(found.active_head) for found in counts)),
        (
            f"FLOPs per token at {length:,}",
            *(weigh(d, "flops", length) for d in (before, after)),
        ),
    ]
    lines = ["swapped", f"  was {_parts(before)}", f"  is  {_parts(after)}"]
    for name, was, now in rows:
        lines.append(f"  {name:26} {was:>15,.0f} -> {now:>15,.0f}   {now / was - 1:+.1%}")
    was, now = (", ".join(f"{n:,}" for n in sorted(set(widths(d)))) for d in (before, after))
    if was or now:
        lines.append(f"  {'feed-forward width':26} {was:>15} -> {now:>15}")
    return "\n".join(lines)


def widths(decoder: Decoder) -> list[int]:
    """Return the hidden widths of all feed-forwards, experts and shared ones among them."""
    found = []
    for op in _ops(_layers(decoder)):
        match op:
            case MLP(hidden=hidden):
                found.append(hidden)
            case MoE(expert=expert, shared=shared):
                found += [expert.hidden, *([shared.hidden] if shared else [])]
    return found


class Heads(NamedTuple):
    """What every mixer is made of, whichever it is."""

    heads: int
    kv_heads: int
    width: int
    rope: Rope | None


def _heads(op: Op, rope: Rope | None) -> Heads:
    """Read the heads of a mixer; `rope` is for those that know no positions."""
    match op:
        case Attention():
            return Heads(op.heads, op.kv_heads, op.head_dim, op.rope)
        case MLA():
            return Heads(op.heads, op.heads, op.value, op.rope)
        case Lightning():
            return Heads(op.heads, op.heads, op.head_dim, rope)
        case Mamba2():
            return Heads(op.heads, op.groups, op.head_dim, rope)
    raise TypeError(f"{type(op).__name__} mixes no positions")


def _mixers(
    decoder: Decoder, layers: list[Layer], kind: MixerKind, every: int | None, window: int
) -> list[Layer]:
    total, number, found = len(decoder.layers), 0, list[Layer]()
    turning = (op.rope for op in _ops(layers) if isinstance(op, Attention | MLA) and op.rope)
    rope = next(turning, None)
    for place, layer in enumerate(layers):
        if not any(part.role == "mixer" for part in layer):
            found.append(layer)
            continue
        number += 1
        if every and number % every == 0:
            found.append(layer)
            continue
        # an extra prediction block stands behind the last layer, and takes its decay
        depth = min(place, total - 1) / max(1, total - 1)
        decay = 1 - depth + 1e-5
        found.append(_each(layer, lambda op, s=decay: _mixer(kind, op, rope, s, window)))
    return found


def _mixer(kind: MixerKind, op: Op, rope: Rope | None, decay: float, window: int) -> Op:
    if not isinstance(op, MIXERS):
        return op
    of = _heads(op, rope)
    match kind:
        case "attention":
            return op if isinstance(op, Attention) else _attention(of)
        case "banded":
            base = op if isinstance(op, Attention) else _attention(of)
            return replace(base, span=Banded(window))
        case "linear":
            return Lightning(of.heads, of.width, decay=0.0)
        case "lightning":
            return op if isinstance(op, Lightning) else Lightning(of.heads, of.width, decay=decay)
        case "mamba2":
            if isinstance(op, Mamba2):
                return op
            return Mamba2(of.heads, of.width, state=of.width, groups=of.kv_heads)
        case "mla":
            return op if isinstance(op, MLA) else _mla(of)


def _attention(of: Heads) -> Attention:
    return Attention(of.heads, of.kv_heads, of.width, rope=of.rope)


def _mla(of: Heads) -> MLA:
    turned = of.rope.width(of.width) if of.rope else 0
    if not 0 < turned < of.width:
        turned = of.width // 2 // 2 * 2
    rope = replace(of.rope or Rope(), fraction=1.0)
    rank = LATENT * of.width
    return MLA(of.heads, None, rank, of.width - turned, turned, value=of.width, rope=rope)


def _ffn(kind: FfnKind, op: Op, own: MoE | None) -> Op:
    match op:
        case MLP():
            if kind == "moe":
                return own or _sparse(op)
            return op if kind == "mlp" else _function(kind, op)
        case MoE(expert=expert, shared=shared):
            if kind == "mlp":
                wide = op.active * expert.hidden + (shared.hidden if shared else 0)
                return replace(expert, hidden=wide)
            if kind == "moe":
                return op
            changed = _function(kind, shared) if shared else None
            return replace(op, expert=_function(kind, expert), shared=changed)
    return op


def _function(kind: FfnKind, op: MLP) -> MLP:
    match kind:
        case "swiglu":
            return replace(op, gated=True, activation="silu")
        case "relu2" | "gelu":
            return replace(op, gated=False, activation=kind)
        case _:
            return op


def _sparse(op: MLP) -> MoE:
    expert = replace(op, hidden=max(1, op.hidden // ACTIVE), bias=False)
    return MoE(expert, EXPERTS, ACTIVE, router=Router(score="sigmoid", bias=True))


def _router(kind: RouterKind, op: Op) -> Op:
    if not isinstance(op, MoE):
        return op
    score = "softmax" if kind == "softmax" else "sigmoid"
    return replace(op, router=replace(op.router, score=score, bias=kind == "sigmoid+bias"))


def _norms(decoder: Decoder, kind: NormKind) -> Decoder:
    def other(norm: AnyNorm) -> AnyNorm:
        if norm.kind == kind:
            return norm
        return Norm(norm.eps) if kind == "rms" else LayerNorm(norm.eps)

    layers = [
        tuple(replace(part, norm=part.norm and other(part.norm)) for part in layer)
        for layer in _layers(decoder)
    ]
    return _with_layers(replace(decoder, norm=other(decoder.norm)), layers)


def _scaled(decoder: Decoder, factor: float) -> Decoder:
    def mlp(op: MLP) -> MLP:
        return replace(op, hidden=max(STEP, round(op.hidden * factor / STEP) * STEP))

    def scale(op: Op) -> Op:
        match op:
            case MLP():
                return mlp(op)
            case MoE(expert=expert, shared=shared):
                return replace(op, expert=mlp(expert), shared=shared and mlp(shared))
        return op

    return _with_layers(decoder, [_each(layer, scale) for layer in _layers(decoder)])


def _layers(decoder: Decoder) -> Iterator[Layer]:
    """All layers, that of an extra prediction block last."""
    yield from decoder.layers
    if decoder.mtp:
        yield decoder.mtp.layer


def _with_layers(decoder: Decoder, layers: list[Layer]) -> Decoder:
    mtp = decoder.mtp and replace(decoder.mtp, layer=layers[-1])
    return replace(decoder, layers=tuple(layers[: len(decoder.layers)]), mtp=mtp)


def _ops(layers: Iterator[Layer] | list[Layer]) -> list[Op]:
    return [part.op for layer in layers for part in layer]


def _each(layer: Layer, change: Callable[[Op], Op]) -> Layer:
    return tuple(replace(part, op=change(part.op)) for part in layer)


def _parts(decoder: Decoder) -> str:
    """Name the parts of a model with how often each occurs: `7 lightning, 1 attention, 8 mlp`."""
    seen: dict[str, int] = {}
    for op in _ops(_layers(decoder)):
        name = _name(op)
        seen[name] = seen.get(name, 0) + 1
    mixed = [f"{times} {name}" for name, times in seen.items()]
    return f"{', '.join(mixed)}, {decoder.norm.kind} norm"


def _name(op: Op) -> str:
    match op:
        case Attention(span=span) if span:
            return f"attention to the last {span.width}"
        case Lightning(decay=0):
            return "linear"
        case MLP(activation=act, gated=gated):
            return f"mlp ({act}{', gated' if gated else ''})"
        case MoE(expert=expert, router=router):
            gate = ", gated" if expert.gated else ""
            rule = f"{router.score}{' + bias' if router.bias else ''}"
            return f"moe ({expert.activation}{gate}, {rule})"
        case _:
            return op.kind


def _known(key: str, value: str | None, kinds: tuple[str, ...]) -> None:
    if value is not None and value not in kinds:
        near = closest(value, kinds)
        raise EtudeError(f"model.{key}", f"unknown {value!r}", " | ".join(kinds), near)
