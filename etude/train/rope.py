"""Change of the rotary base between stages: the weights stay, the angles do not."""

from dataclasses import replace

from etude import arch
from etude.nn.attention import Attention
from etude.nn.decoder import Decoder


def set_rope_theta(model: Decoder, theta: float) -> None:
    """Give every rotary attention of a model another base, and its saved config too.

    GLM-4.5 goes from 10,000 to 1,000,000 where the context grows to 32K (section 2.4).

    Raises:
        EtudeError: the base is not positive.
    """
    model.arch = _decoder(model.arch, theta)
    for module in model.modules():
        if isinstance(module, Attention):
            module.arch = _attention(module.arch, theta)
    if model.mtp is not None and model.arch.mtp is not None:
        model.mtp.arch = model.arch.mtp
    turning = [(m.arch.rope, m.arch.head_dim) for m in model.mixers() if m.arch.rope]
    model.ropes = tuple(dict.fromkeys(turning))


def _decoder(decoder: arch.Decoder, theta: float) -> arch.Decoder:
    mtp = decoder.mtp and replace(decoder.mtp, layer=_layer(decoder.mtp.layer, theta))
    return replace(decoder, layers=tuple(_layer(layer, theta) for layer in decoder.layers), mtp=mtp)


def _layer(layer: arch.Layer, theta: float) -> arch.Layer:
    return tuple(
        replace(part, op=_attention(part.op, theta))
        if isinstance(part.op, arch.Attention)
        else part
        for part in layer
    )


def _attention(op: arch.Attention, theta: float) -> arch.Attention:
    return replace(op, rope=replace(op.rope, theta=theta)) if op.rope else op
