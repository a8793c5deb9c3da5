"""A model on one page of text: layers run-length encoded, shapes, exact counts; no tensor made."""

from collections.abc import Iterable, Iterator
from itertools import groupby

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
        f"up to {decoder.max_length:,} tokens   {decoder.norm.kind} norm, eps {decoder.norm_eps:g}"
    )


def _body(decoder: arch.Decoder) -> Iterator[str]:
    weights = list(arch.tensors(decoder))
    yield from _tensors(w for w in weights if w.name.startswith("embed."))
    start, seen = 0, {}
    for layer, run in groupby(decoder.layers):
        times = len(list(run))
        span = f"layer {start}" if times == 1 else f"layers {start}-{start + times - 1}"
        yield f"{span}   {times} x"
        yield from _layer(layer, f"layers.{start}.", span, weights, seen)
        start += times
    yield from _tensors(w for w in weights if w.name.startswith(("norm.", "head.")))
    if decoder.mtp:
        yield f"mtp   depth {decoder.mtp.depth}, predicts the token after next"
        own = (
            w for w in weights if w.name.startswith("mtp.") and not w.name.startswith("mtp.layer.")
        )
        yield from _tensors(own, indent="  ", drop="mtp.")
        yield from _layer(decoder.mtp.layer, "mtp.layer.", "mtp", weights, seen)


def _layer(
    layer: arch.Layer,
    prefix: str,
    span: str,
    weights: list[arch.Weight],
    seen: dict[arch.Residual, str],
) -> Iterator[str]:
    """Sublayers with their tensors; one that stood before is named, not repeated."""
    for part in layer:
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
            if op.rope:
                turned = op.rope.width(op.head_dim)
                extras.append(f"{turned} dims turn, base {op.rope.theta:,.0f}")
            return "attention: " + ", ".join(extras)
        case arch.MLP() as op:
            return f"mlp: {op.hidden:,} wide, {op.activation}" + (", gated" if op.gated else "")
        case arch.MoE() as op:
            rule = op.router
            groups = f", best {rule.group_topk} of {rule.groups} groups" if rule.groups > 1 else ""
            bias = " + bias" if rule.bias else ""
            shared = " + 1 shared" if op.shared else ""
            return (
                f"moe: {op.active} of {op.experts} experts {op.expert.hidden:,} wide{shared}, "
                f"{rule.score}{bias}{groups}, times {rule.scale:g}"
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
    cached = arch.cache_bytes(decoder, 1)
    whole = arch.cache_bytes(decoder, decoder.max_length)
    yield f"FLOPs per generated token   {cost.fixed:,} + {cost.per_context:,} x context"
    yield f"cache per token, 16 bit     {size(cached)}; {decoder.max_length:,} tokens {size(whole)}"
