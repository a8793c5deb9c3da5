"""A model on one page of text: layers run-length encoded, shapes, exact counts; no tensor made."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, takewhile
from textwrap import wrap

from etude import arch


def page(name: str, decoder: arch.Decoder) -> str:
    """Compose the page that `etude show` prints.

    Args:
        name: title, such as "glm45-air".
        decoder: the model.

    Returns:
        Lines of at most about 100 characters, without colour.
    """
    return "\n".join((*_head(name, decoder), "", *_body(decoder), "", *_numbers(decoder))) + "\n"


def short(number: float) -> str:
    """Write a number with three digits and a unit: 355B, 2.85M, 512."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return (
                f"{number / size:.3g}{unit}"
                if abs(number) < 999.5 * size
                else f"{number / size:.0f}{unit}"
            )
    return f"{number:.0f}" if number == int(number) else f"{number:.3g}"


def size(number: float) -> str:
    """Write a number of bytes in binary units: 368 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"


def _head(name: str, decoder: arch.Decoder) -> Iterator[str]:
    counts = arch.count(decoder)
    total = short(counts.trunk + counts.mtp)
    yield f"{name}   {total} parameters, {short(counts.active)} active per token"
    yield (
        f"width {decoder.dim:,}   vocabulary {decoder.vocab:,}{', tied' if decoder.tied else ''}   "
        f"up to {decoder.max_length:,} tokens   {decoder.norm.kind} norm, eps {decoder.norm.eps:g}"
    )


def _body(decoder: arch.Decoder) -> Iterator[str]:
    weights = list(arch.tensors(decoder))
    yield from _tensors(w for w in weights if w.name.startswith(("embed.", "positions.")))
    start, seen, first = 0, {}, dict[arch.Layer, int]()
    runs = [list(group) for _, group in groupby(decoder.layers, _undecayed)]
    while runs:
        known = list(takewhile(lambda run: len(run) == 1 and run[0] in first, runs))
        if len(known) > 2:
            yield from _repeats(start, [first[layer] for (layer,) in known])
            start, runs = start + len(known), runs[len(known) :]
            continue
        run = runs.pop(0)
        times = len(run)
        span = f"layer {start}" if times == 1 else f"layers {start}-{start + times - 1}"
        yield f"{span}   {times} x{_decays(run)}"
        yield from _layer(run[0], f"layers.{start}.", span, weights, seen)
        first.setdefault(run[0], start)
        start += times
    yield from _tensors(w for w in weights if w.name.startswith(("norm.", "head.")))
    if decoder.mtp:
        yield f"mtp   depth {decoder.mtp.depth}, predicts the token after next"
        own = (
            w for w in weights if w.name.startswith("mtp.") and not w.name.startswith("mtp.layer.")
        )
        yield from _tensors(own, indent="  ", drop="mtp.")
        yield from _layer(decoder.mtp.layer, "mtp.layer.", "mtp", weights, seen)


def _repeats(start: int, like: list[int]) -> Iterator[str]:
    """Layers that each stood before, where kinds alternate: by the number of the first such."""
    yield f"layers {start}-{start + len(like) - 1}   in turn as layers"
    yield from wrap(" ".join(map(str, like)), 96, initial_indent="  ", subsequent_indent="  ")


def _undecayed(layer: arch.Layer) -> arch.Layer:
    """Return a layer without its decay, in which the layers of a run may differ."""
    return tuple(
        replace(part, op=replace(part.op, decay=1.0))
        if isinstance(part.op, arch.Lightning)
        else part
        for part in layer
    )


def _decays(run: list[arch.Layer]) -> str:
    decays = [op.decay for op in arch.mixers(tuple(run)) if isinstance(op, arch.Lightning)]
    if not decays:
        return ""
    ends = dict.fromkeys(f"{decay:.4g}" for decay in (decays[0], decays[-1]))
    return f"   decay x {' to '.join(ends)}"


def _layer(
    layer: arch.Layer,
    prefix: str,
    span: str,
    weights: list[arch.Weight],
    seen: dict[arch.Residual, str],
) -> Iterator[str]:
    """Sublayers with their tensors; one that stood before is named, not repeated."""
    for part in _undecayed(layer):
        own = [w for w in weights if w.name.startswith(f"{prefix}{part.role}.")]
        total = sum(w.size for w in own if w.trained)
        if part in seen:
            yield f"  {part.role:5}  as in {seen[part]}   {total:,}"
            continue
        seen[part] = span
        yield f"  {part.role:5}  {_words(part)}   {total:,}"
        yield from _tensors(own, indent="    ", drop=f"{prefix}{part.role}.")


def _words(part: arch.Residual) -> str:
    match part.op:
        case arch.Attention() as op:
            extras = [f"{op.heads} heads on {op.kv_heads} of width {op.head_dim}"]
            extras += ["q k normed"] if op.qk_norm else []
            if op.span:
                stride = f", each {op.span.stride}th" if op.span.stride else ""
                extras.append(f"last {op.span.width:,} tokens{stride}")
            extras += [f"scores times {op.scale:.4g}"] if op.scale is not None else []
            if op.rope:
                turned = op.rope.width(op.head_dim)
                extras.append(f"{turned} dims turn, base {op.rope.theta:,.0f}")
            return "attention: " + ", ".join(extras)
        case arch.MLA() as op:
            queries = f", queries from a latent of {op.q_rank:,}" if op.q_rank else ""
            return (
                f"mla: {op.heads} heads of {op.nope} + {op.rope_dim} turning, values {op.value}, "
                f"latent {op.kv_rank:,}{queries}, base {op.rope.theta:,.0f}"
            )
        case arch.Lightning() as op:
            return f"lightning: {op.heads} heads of width {op.head_dim}"
        case arch.Mamba2() as op:
            return (
                f"mamba2: {op.heads} heads of width {op.head_dim}, state {op.state}, "
                f"{op.groups} groups, convolution {op.conv}"
            )
        case arch.MLP() as op:
            extras = (", gated" if op.gated else "") + (", biases" if op.bias else "")
            return f"mlp: {op.hidden:,} wide, {op.activation}{extras}"
        case arch.MoE() as op:
            rule = op.router
            groups = f", best {rule.group_topk} of {rule.groups} groups" if rule.groups > 1 else ""
            bias = " + bias" if rule.bias else ""
            latent = f" on a latent of {op.latent:,}" if op.latent else ""
            shared = " + 1 shared" if op.shared else ""
            wide = f"{op.expert.hidden:,} wide{latent}{shared}"
            return (
                f"moe: {op.active} of {op.experts} experts {wide}, {rule.score}{bias}{groups}, "
                f"times {rule.scale:g}"
            )


def _tensors(weights: Iterable[arch.Weight], *, indent: str = "", drop: str = "") -> Iterator[str]:
    """One line per tensor: name, shape, size; a buffer is marked."""
    for weight in weights:
        shape = " x ".join(f"{n:,}" for n in weight.shape)
        mark = "" if weight.trained else "   float32 buffer"
        name = weight.name.removeprefix(drop)
        yield f"{indent + name:28} {shape:24} {weight.size:>17,}{mark}"


def _numbers(decoder: arch.Decoder) -> Iterator[str]:
    counts, cost = arch.count(decoder), arch.forward_flops(decoder)
    rows = [
        ("trunk, with embedding and head", counts.trunk),
        ("mtp", counts.mtp),
        ("stored, with copies and buffers", counts.stored),
        ("active per token", counts.active),
        ("active with the head", counts.active_head),
    ]
    yield "parameters"
    yield from (f"  {name:34} {number:>19,}" for name, number in rows)
    yield "by part"
    yield from (f"  {name:34} {number:>19,}" for name, number in counts.parts.items())
    states = arch.cache_bytes(decoder, 0)
    cached = size(arch.cache_bytes(decoder, 1) - states) + (f" + {size(states)}" if states else "")
    whole = arch.cache_bytes(decoder, decoder.max_length)
    near: dict[int, int] = {}  # by width of the band
    for reach, per in cost.bands:
        near[reach] = near.get(reach, 0) + per
    bands = "".join(f" + {per:,} x at most {reach:,}" for reach, per in near.items())
    yield f"FLOPs per generated token   {cost.fixed:,} + {cost.per_context:,} x context{bands}"
    far = ", ".join(f"{short(work)} at {n:,}" for n, work in arch.flops_by_length(decoder))
    yield f"  by tokens before it       {far}"
    yield f"cache per token, 16 bit     {cached}; {decoder.max_length:,} tokens {size(whole)}"
