"""The decoder, the only one in the package: embed -> layers -> norm -> head, and MTP beside."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.errors import EtudeError
from etude.nn import build
from etude.nn.attention import Attention
from etude.nn.cache import Cache
from etude.nn.context import Context, Route
from etude.nn.linear import Embedding, Linear
from etude.nn.moe import Router
from etude.nn.mtp import MTP, shift_labels
from etude.nn.residual import Layer, Residual
from etude.ops.attention import document_mask, document_positions
from etude.ops.logp import label_logp
from etude.ops.rope import tables
from etude.typing import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from etude.models.checkpoint import Published


class Scores(NamedTuple):
    """What a forward pass with labels gives.

    Attributes:
        logp: log-probability [B, T] of each label in nats, float32; 0 where the label is -100.
        entropy: entropy [B, T] of each distribution, when asked for.
        mtp: per depth, log-probabilities [B, T] and the labels [B, T] they belong to.
        routes: one per MoE layer, the MTP block last.
    """

    logp: Tensor
    entropy: Tensor | None
    mtp: tuple[tuple[Tensor, Tensor], ...]
    routes: list[Route]


class Decoder(nn.Module):
    """A causal language model made from its description.

    Attributes:
        arch: the description.
        published: family, config and tokenizer it was loaded with; None for a bare model.
    """

    def __init__(self, description: arch.Decoder):
        super().__init__()
        self.arch = description
        self.published: Published | None = None
        dim, norm = description.dim, description.norm
        self.embed = Embedding(description.vocab, dim)
        self.layers = nn.ModuleList(Layer(dim, layer, norm) for layer in description.layers)
        self.norm = build.norm(dim, norm)
        self.head = None if description.tied else Linear(dim, description.vocab, bias=False)
        self.mtp = MTP(dim, description.mtp, norm) if description.mtp else None
        self.ropes = tuple(
            dict.fromkeys((m.arch.rope, m.arch.head_dim) for m in self.mixers() if m.arch.rope)
        )

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        *,
        mask: Bool[Tensor, "B T"] | Int[Tensor, "B T"] | None = None,
        segments: Int[Tensor, "B T"] | None = None,
        pos: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
        mtp: bool = True,
    ) -> Float[Tensor, "B T V"] | Scores:
        """Run the model.

        Args:
            ids: token ids.
            mask: false on padding, on either side of a row (right side only with a cache).
            segments: document of each token, 0 for padding; tokens read their own document only.
            pos: position of each token; default counts from the start of each document or the
                cache's length.
            cache: keys and values of earlier tokens; gets those of `ids` too.
            labels: the token to score at each position (already shifted), -100 to ignore.
            temperature: divides the logits before the log-probabilities.
            entropy: also give the entropy of each distribution.
            mtp: run the MTP block, where there is one, when labels are given.

        Returns:
            Logits [B, T, V] in float32, or `Scores` when labels are given.

        Raises:
            EtudeError: rows longer than the model or the cache, or a mask that the cache cannot
                take.
        """
        held = cache.longest if cache is not None else 0
        if held + ids.shape[1] > self.arch.max_length:
            found = f"{held + ids.shape[1]} tokens"
            raise EtudeError(
                "ids", found, f"at most {self.arch.max_length}", "cut or pack the rows"
            )
        mask = None if mask is None else mask.bool()
        if mask is not None and cache is None:
            segments = mask.long() if segments is None else segments * mask
        x = self.embed(ids)
        ctx = self._context(ids, x.dtype, mask, segments, pos, cache)
        ctx.routes = None if labels is None else []
        hidden = self.trunk(x, ctx)
        if cache is not None:
            cache.commit(mask)
        if labels is None:
            return F.linear(hidden, self.head_weight).float()
        logp, spread = self._score(hidden, labels, temperature, entropy)
        ahead = self._ahead(x, hidden, labels, segments, ctx, temperature) if mtp else ()
        return Scores(logp, spread, ahead, list(ctx.routes or ()))

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """Matrix of the output head."""
        return self.embed.weight if self.head is None else self.head.weight

    def trunk(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Pass embedded tokens through the layers and the final norm."""
        for i, layer in enumerate(self.layers):
            ctx.layer = i
            x = layer(x, ctx)
        return self.norm(x)

    def mtp_logits(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B S V"]:
        """Logits of the MTP block: row p, of T - 1, speaks of token p + 2.

        Raises:
            EtudeError: the model has no such block.
        """
        if self.mtp is None:
            raise EtudeError("mtp", "this model has no MTP block")
        x = self.embed(ids)
        hidden = self.trunk(x, self._context(ids, x.dtype, None, None, None, None))
        ctx = self._context(ids[:, 1:], x.dtype, None, None, None, None)
        ctx.layer = len(self.layers)
        return F.linear(self.mtp(hidden[:, :-1], x[:, 1:], ctx)[0], self.head_weight).float()

    def mixers(self) -> list[Attention]:
        """Mixers of the trunk, in layer order."""
        parts = (part for layer in self.layers for part in layer.children())
        ops = (part.op for part in parts if isinstance(part, Residual))
        return [op for op in ops if isinstance(op, Attention)]

    def routers(self) -> Iterator[tuple[str, Router]]:
        """Yield every router with its name, in the order of `Scores.routes`."""
        return ((name, m) for name, m in self.named_modules() if isinstance(m, Router))

    def _context(
        self,
        ids: Tensor,
        dtype: torch.dtype,
        mask: Tensor | None,
        segments: Tensor | None,
        pos: Tensor | None,
        cache: Cache | None,
    ) -> Context:
        reads, causal = None, True
        if cache is not None:
            rows, new = ids.shape
            reads, causal = cache.begin(rows, new, mask)
        elif segments is not None:
            reads, causal, mask = document_mask(segments), False, segments != 0
        if pos is None and cache is not None:
            turns = cache.turns()
        else:
            if pos is None and segments is not None:
                pos = document_positions(segments)
            elif pos is None:
                pos = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
            turns = {
                rope: tables(pos, rope.width(width), theta=rope.theta, head_dim=width, dtype=dtype)
                for rope, width in self.ropes
            }
        return Context(turns, mask=reads, causal=causal, cache=cache, valid=mask)

    def _score(
        self, hidden: Tensor, labels: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logp, spread = label_logp(
            hidden.flatten(0, 1),
            self.head_weight,
            labels.flatten(),
            temperature=temperature,
            entropy=entropy,
        )
        return logp.view_as(labels), None if spread is None else spread.view_as(labels)

    def _ahead(
        self,
        x: Tensor,
        hidden: Tensor,
        labels: Tensor,
        segments: Tensor | None,
        ctx: Context,
        temperature: float,
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        if self.mtp is None:
            return ()
        ctx.layer = len(self.layers)
        steps = enumerate(self.mtp.chain(hidden, x, ctx), start=1)
        wanted = [(h, shift_labels(labels, segments, k)) for k, h in steps]
        return tuple((self._score(h, label, temperature, False)[0], label) for h, label in wanted)
