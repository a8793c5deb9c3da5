"""What an output head makes of hidden states, compared chunk by chunk, never kept whole.

The logits of a chunk of tokens live while that chunk is worked on, forward and again backward. So
two models of one vocabulary can be compared over all of it at the memory of one chunk of each.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from etude.ops.wide import at_least_float32
from etude.typing import Float, Tensor

CHUNK_BYTES = 32 << 20  # float32 logits of one chunk

Compare = Callable[[Tensor, slice], Mapping[str, Tensor]]


def log_probs(
    hidden: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], *, temperature: float = 1.0
) -> Float[Tensor, "N V"]:
    """Log-probabilities of the whole vocabulary, in float32 at least."""
    kind = at_least_float32(hidden)
    logits = F.linear(hidden.to(kind), weight.to(kind)) / temperature
    return logits.log_softmax(-1)


def over_chunks(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    compare: Compare,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Call `compare` with the log-probabilities of each chunk and join what it gives.

    Args:
        hidden: normed hidden states; gradient flows.
        weight: the output head; gradient flows.
        compare: from log-probabilities [n, V] and the rows they are of, to named values [n, ...].
            It is called again in the backward pass.
        temperature: the logits are divided by it.
        chunk: tokens worked on at once; None picks about 32 MB of logits.
    """
    size = chunk or max(64, CHUNK_BYTES // (4 * weight.shape[0]))
    names: list[str] = []

    def one(states: Tensor, head: Tensor, rows: slice) -> tuple[Tensor, ...]:
        found = compare(log_probs(states, head, temperature=temperature), rows)
        names[:] = found
        return tuple(found.values())

    parts = []
    for at in range(0, max(len(hidden), 1), size):
        rows = slice(at, min(at + size, len(hidden)))
        if torch.is_grad_enabled():
            parts.append(checkpoint(one, hidden[rows], weight, rows, use_reentrant=False))
        else:
            parts.append(one(hidden[rows], weight, rows))
    return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True))
