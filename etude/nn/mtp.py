"""Multi-token prediction: one more layer for the token after next (arXiv:2508.06471, 2.1)."""

from collections.abc import Iterator

import torch
from torch import nn

from etude import arch
from etude.nn import build
from etude.nn.context import Context
from etude.nn.linear import Linear
from etude.nn.residual import Layer
from etude.ops.logp import IGNORED
from etude.typing import Bool, Float, Int, Tensor


class MTP(nn.Module):
    """norm(layer(join([norm(embedding of next token), norm(hidden)])))."""

    def __init__(self, dim: int, mtp: arch.MTP, norm: arch.AnyNorm):
        super().__init__()
        self.arch = mtp
        self.embed_norm = build.norm(dim, norm)
        self.hidden_norm = build.norm(dim, norm)
        self.join = Linear(2 * dim, dim, bias=False)
        self.layer = Layer(dim, mtp.layer, norm)
        self.norm = build.norm(dim, norm)

    def forward(
        self, hidden: Float[Tensor, "B T D"], embedded: Float[Tensor, "B T D"], ctx: Context
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
        """One step: `hidden` at p joined with the embedding of token p + 1.

        Returns:
            The normed hidden for the head, which then speaks of token p + 2, and what a next step
            carries on.
        """
        halves = self.embed_norm(embedded), self.hidden_norm(hidden)
        joined = torch.cat(halves if self.arch.first == "embedding" else halves[::-1], -1)
        raw = self.layer(self.join(joined), ctx)
        normed = self.norm(raw)
        return normed, normed if self.arch.carry == "normed" else raw

    def chain(
        self, hidden: Float[Tensor, "B T D"], embedded: Float[Tensor, "B T D"], ctx: Context
    ) -> Iterator[Float[Tensor, "B T D"]]:
        """Yield the hidden states of depth 1, 2, ...; `embedded` holds the tokens themselves.

        The last k tokens of a document have no token k places on: what they are joined with belongs
        to another, so they carry no label and count for no router.
        """
        for k in range(1, self.arch.depth + 1):
            ctx.valid = _followed(embedded, ctx.segments, k)
            normed, hidden = self(hidden, embedded.roll(-k, dims=1), ctx)
            yield normed


def _followed(
    rows: Float[Tensor, "B T D"], segments: Int[Tensor, "B T"] | None, depth: int
) -> Bool[Tensor, "B T"]:
    """Whether the token `depth` places on stands in the same document."""
    valid = rows.new_zeros(rows.shape[:2], dtype=torch.bool)
    if segments is None:
        valid[:, :-depth] = True
    else:
        held = segments[:, :-depth]
        valid[:, :-depth] = (held == segments[:, depth:]) & (held != 0)
    return valid


def shift_labels(
    labels: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None, depth: int
) -> Int[Tensor, "B T"]:
    """Take the label `depth` positions on, ignored across the end of a document."""
    shifted = torch.full_like(labels, IGNORED)
    shifted[:, :-depth] = labels[:, depth:]
    if segments is not None:
        same = segments[:, :-depth] == segments[:, depth:]
        shifted[:, :-depth] = torch.where(same, shifted[:, :-depth], IGNORED)
    return shifted
