"""Causal depthwise convolution over time: C channels of K taps, the last on the token itself.

y_t = bias + sum_k weight_k * x_{t - (K - 1 - k)}, where inputs before the first token are those of
`tail`, or zero. A filter never reaches into another document.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from etude.ops.wide import at_least_float32
from etude.typing import Bool, Float, Int, Tensor

PIECE = 64  # tokens of a row that pass through all taps while a CPU's cache holds them


def causal_conv(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "K C"],
    bias: Float[Tensor, " C"] | None,
    *,
    tail: Float[Tensor, "B J C"] | None = None,
    pos: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T C"]:
    """Filter every channel, one pass over memory per tap; sums are float32 at least.

    Args:
        x: inputs.
        weight: taps of each channel, the oldest first.
        bias: added to each channel.
        tail: the K - 1 inputs before `x`, oldest first; None stands for zeros.
        pos: place of each token in its document, where a row holds several of them; with it the
            first token of the row starts one too, whatever `tail` holds.
    """
    taps, wide = len(weight), at_least_float32(x)
    before = x.new_zeros(len(x), taps - 1, x.shape[2]) if tail is None else tail.to(x.dtype)
    padded = torch.cat((before, x), 1).to(wide)
    weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
    if torch.is_grad_enabled():
        return _Conv.apply(padded, weight, bias, pos).to(x.dtype)
    return _filtered(padded, weight, bias, pos).to(x.dtype)


def _filtered(padded: Tensor, weight: Tensor, bias: Tensor | None, pos: Tensor | None) -> Tensor:
    last = len(weight) - 1
    y = torch.empty_like(padded[:, last:])
    for rows, tokens, places in _pieces(y, pos):
        part = torch.mul(padded[rows, _moved(tokens, last)], weight[last], out=y[rows, tokens])
        if bias is not None:
            part += bias
        for tap in range(last):
            old = padded[rows, _moved(tokens, tap)]
            part.addcmul_(_within(old, places, last - tap), weight[tap])
    return y


def _pieces(x: Tensor, pos: Tensor | None) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Yield rows, tokens and their places: few at a time on a CPU, elsewhere all."""
    few = x.device.type == "cpu"
    height, width = (1, PIECE) if few else x.shape[:2]
    for row in range(0, len(x), height):
        rows = slice(row, row + height)
        for at in range(0, x.shape[1], width):
            tokens = slice(at, min(at + width, x.shape[1]))
            yield rows, tokens, None if pos is None else pos.expand(len(x), -1)[rows, tokens]


def _moved(tokens: slice, by: int) -> slice:
    return slice(tokens.start + by, tokens.stop + by)


def _within(x: Tensor, pos: Tensor | None, back: int) -> Tensor:
    """Rows [B, T, C] of pairs `back` tokens apart, zero where a document starts in between."""
    return x if pos is None or back == 0 else x.masked_fill((pos < back).unsqueeze(-1), 0.0)


class _Conv(torch.autograd.Function):
    """The same with a gradient of its own, which a CPU takes 1.8 times as fast in pieces."""

    @staticmethod
    def forward(
        ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor | None, pos: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(padded, weight, pos)
        ctx.biased = bias is not None
        return _filtered(padded, weight, bias, pos)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, pos = ctx.saved_tensors
        grad, last = grads[0], len(weight) - 1
        d_padded, d_weight = torch.zeros_like(padded), torch.zeros_like(weight)
        d_bias = torch.zeros_like(weight[0])
        for rows, tokens, places in _pieces(grad, pos):
            own = grad[rows, tokens]
            d_bias += own.sum((0, 1))
            for tap in range(last + 1):
                near, at = _within(own, places, last - tap), _moved(tokens, tap)
                d_padded[rows, at].addcmul_(near, weight[tap])
                d_weight[tap] += (near * padded[rows, at]).sum((0, 1))
        return d_padded, d_weight, d_bias if ctx.biased else None, None


def conv_step(
    x: Float[Tensor, "B 1 C"],
    weight: Float[Tensor, "K C"],
    bias: Float[Tensor, " C"] | None,
    *,
    tail: Float[Tensor, "B J C"],
) -> Float[Tensor, "B 1 C"]:
    """Filter one token of each row."""
    wide = at_least_float32(x)
    y = (torch.cat((tail.to(x.dtype), x), 1).to(wide) * weight.to(wide)).sum(1, keepdim=True)
    return (y if bias is None else y + bias).to(x.dtype)


def causal_conv_reference(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "K C"],
    bias: Float[Tensor, " C"] | None,
    *,
    tail: Float[Tensor, "B J C"] | None = None,
) -> Float[Tensor, "B T C"]:
    """The same for rows of one document each, as the library has it."""
    taps, rows = len(weight), x.transpose(1, 2)
    rows = F.pad(rows, (taps - 1, 0)) if tail is None else torch.cat((tail.mT, rows), -1)
    return F.conv1d(rows, weight.t().unsqueeze(1), bias, groups=x.shape[2]).transpose(1, 2)


def next_tail(
    x: Float[Tensor, "B T C"],
    tail: Float[Tensor, "B J C"],
    valid: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B J C"]:
    """Return the last J inputs of each row for the pass that follows.

    Args:
        x: inputs of this pass.
        tail: the J inputs before them.
        valid: false on padding, which stands right of the tokens and is not taken.
    """
    both, keep = torch.cat((tail.to(x.dtype), x), 1), tail.shape[1]
    if valid is None:
        return both[:, x.shape[1] :]
    at = valid.sum(1, keepdim=True) + torch.arange(keep, device=x.device)
    return both.gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[2]))
