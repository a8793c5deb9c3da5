"""Log-probability and entropy of labels, in chunks of tokens.

Logits that take more than `KEPT_BYTES` live, in float32, for as long as their chunk is worked on,
and the backward pass computes them again. So memory is one chunk, not tokens times vocabulary, at
the price of one more product with the head. Fewer are kept, once: they become their own gradient.
Operands of fewer bits are widened first: rounded to bfloat16, logits near 16 would be a sixteenth
apart, and a log-probability no better than that.
"""

from typing import Any

import torch
import torch.nn.functional as F

from etude.ops.wide import at_least_float32
from etude.typing import Float, Int, Tensor

IGNORED = -100
KEPT_BYTES = 256 << 20  # float32 logits of a pass up to which all are kept for its backward pass
CHUNK_BYTES = 32 << 20  # float32 logits of one chunk
CACHED_BYTES = 8 << 20  # on a CPU: what its caches hold is worked on 1.15 times as fast


def label_logp(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """Log-probability of each label, and on request the entropy of each distribution, in nats.

    Args:
        hidden: normed hidden states; gradient flows.
        weight: the output head; gradient flows.
        labels: token to score at each position; -100 gives exactly 0 in both results and no
            gradient.
        temperature: the logits are divided by it.
        entropy: also return the entropy, with gradient.
        chunk: tokens worked on at once; None picks about 32 MB of logits, 8 MB on a CPU.
    """
    most = CACHED_BYTES if weight.device.type == "cpu" else CHUNK_BYTES
    chunk = chunk or max(64, most // (4 * weight.shape[0]))
    graph = torch.is_grad_enabled()  # inside of a Function it never is
    logp, h = _LabelLogp.apply(hidden, weight, labels, temperature, entropy, chunk, graph)
    return logp, h if entropy else None


def label_logp_reference(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """The same from the full logits, by automatic differentiation."""
    logits = F.linear(_wide(hidden), _wide(weight)).float() / temperature
    logp = logits.log_softmax(-1)
    valid = labels != IGNORED
    picked = logp.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    spread = torch.where(valid, -(logp.exp() * logp).sum(-1), 0.0) if entropy else None
    return torch.where(valid, picked, 0.0), spread


class _LabelLogp(torch.autograd.Function):
    """Forward keeps the log of each partition sum, and few logits; backward makes many again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        temperature: float,
        entropy: bool,
        chunk: int,
        graph: bool,
    ) -> tuple[Tensor, Tensor]:
        logps, norms, spreads = [], [], []
        head = _wide(weight)  # once, not per chunk: the peak is the same
        keep = graph and any(ctx.needs_input_grad)
        keep &= 4 * len(labels) * len(head) <= KEPT_BYTES
        held, spare = _buffer(hidden, head, None if keep else chunk), _buffer(hidden, head, chunk)
        for rows in _chunks(labels, chunk):
            states, wanted = _wide(hidden[rows]), labels[rows].clamp_min(0).unsqueeze(-1)
            logits = _logits(states, head, temperature, held[rows] if keep else held)
            terms, top = spare[: len(logits)], logits.amax(-1, keepdim=True)
            norm = torch.sub(logits, top, out=terms).exp_().sum(-1, keepdim=True).log_().add_(top)
            logps.append((logits.gather(-1, wanted) - norm).squeeze(-1))
            norms.append(norm)
            if entropy:
                logp = torch.sub(logits, norm, out=terms)
                spreads.append(-(logp.exp() * logp).sum(-1))
        valid = labels != IGNORED
        logp = torch.where(valid, torch.cat(logps), 0.0)
        spread = torch.where(valid, torch.cat(spreads), 0.0) if entropy else logp.new_zeros(0)
        kept = held if keep else None
        ctx.save_for_backward(hidden, weight, labels, torch.cat(norms), spread, kept)
        ctx.temperature, ctx.entropy, ctx.chunk = temperature, entropy, chunk
        return logp, spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, norms, spread, kept = ctx.saved_tensors
        valid = labels != IGNORED
        g_logp = torch.where(valid, grads[0], 0.0) / ctx.temperature
        g_spread = torch.where(valid, grads[1], 0.0) / ctx.temperature if ctx.entropy else None
        head = _wide(weight)
        d_hidden = torch.empty_like(hidden, dtype=head.dtype) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        held = _buffer(hidden, head, ctx.chunk) if kept is None else kept
        for rows in _chunks(labels, ctx.chunk):
            states = _wide(hidden[rows])
            made = kept is None
            logits = _logits(states, head, ctx.temperature, held) if made else held[rows]
            logits -= norms[rows]  # now log-probabilities
            more = None
            if g_spread is not None:
                # dH / dz_j = -p_j (log p_j + H)
                logp_plus = logits + spread[rows].unsqueeze(-1)
                more = logits.exp() * logp_plus * g_spread[rows].unsqueeze(-1)
            d_logits = _d_logits(logits, labels[rows], g_logp[rows])
            d_logits = d_logits if more is None else d_logits.sub_(more)
            d_logits = d_logits.to(head.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, head, out=d_hidden[rows])
            if d_weight is not None and made:
                d_weight.addmm_(d_logits.t(), states)
        if d_weight is not None and kept is not None:
            torch.mm(kept.to(head.dtype).t(), _wide(hidden), out=d_weight)
        d_hidden = None if d_hidden is None else d_hidden.to(hidden.dtype)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None, None, None


def _chunks(labels: Tensor, chunk: int) -> list[slice]:
    count = len(labels)  # without labels there is still one chunk, of none
    return [slice(at, min(at + chunk, count)) for at in range(0, max(count, 1), chunk)]


def _buffer(hidden: Tensor, head: Tensor, rows: int | None) -> Tensor:
    """Room for float32 logits of as many tokens, or of all."""
    rows = len(hidden) if rows is None else min(rows, len(hidden))
    return hidden.new_empty(rows, len(head), dtype=torch.float32)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32; what is as wide already comes back as it is."""
    return tensor.to(at_least_float32(tensor))


def _logits(states: Tensor, head: Tensor, temperature: float, out: Tensor) -> Tensor:
    """Write the logits of a chunk into the first rows of `out`."""
    out = out[: len(states)]
    if head.dtype == out.dtype:
        torch.mm(states, head.t(), out=out)
    else:
        out.copy_(states @ head.t())
    return out if temperature == 1.0 else out.div_(temperature)


def _d_logits(logp: Tensor, labels: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a label's log-probability, in the place of `logp`: (one-hot - softmax) * grad."""
    grad = grad.unsqueeze(-1)
    return logp.exp_().mul_(-grad).scatter_add_(-1, labels.clamp_min(0).unsqueeze(-1), grad)
