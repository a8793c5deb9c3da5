"""Change of the rotary positions between stages: the weights stay, the angles do not."""

from dataclasses import replace
from typing import Any

from etude import arch
from etude.nn.attention import Attention
from etude.nn.decoder import Decoder
from etude.nn.mla import MLA


def set_rope(model: Decoder, *, theta: float | None = None, yarn: arch.YaRN | None = None) -> None:
    """Give every rotary attention of a model another base or scaling, and its saved config too.

    GLM-4.5 goes from base 10,000 to 1,000,000 where the context grows to 32K (section 2.4); Kimi K2
    reaches 128K by YaRN (arXiv:2507.20534, section 2.4).

    Args:
        model: changed in place.
        theta: base of the frequencies; None keeps it.
        yarn: scaling; None keeps what there is.

    Raises:
        EtudeError: the base is not positive.
    """
    change: dict[str, Any] = {"theta": theta} if theta else {}
    change |= {"scaling": yarn} if yarn else {}
    model.arch = _decoder(model.arch, change)
    for module in model.modules():
        if isinstance(module, Attention | MLA):
            module.arch = _op(module.arch, change)
    if model.mtp is not None and model.arch.mtp is not None:
        model.mtp.arch = model.arch.mtp
    model.ropes = model.rotary()


def _decoder(decoder: arch.Decoder, change: dict[str, Any]) -> arch.Decoder:
    mtp = decoder.mtp and replace(decoder.mtp, layer=_layer(decoder.mtp.layer, change))
    layers = tuple(_layer(layer, change) for layer in decoder.layers)
    return replace(decoder, layers=layers, mtp=mtp)


def _layer(layer: arch.Layer, change: dict[str, Any]) -> arch.Layer:
    return tuple(replace(part, op=_op(part.op, change)) for part in layer)


def _op(op: Any, change: dict[str, Any]) -> Any:
    turns = isinstance(op, arch.Attention | arch.MLA) and op.rope
    return replace(op, rope=replace(op.rope, **change)) if turns else op
