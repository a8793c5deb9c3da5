"""The decoder, the only one in the package: embed -> layers -> norm -> head, and MTP beside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from etude import arch
from etude.errors import EtudeError
from etude.nn import build
from etude.nn.cache import Cache, Mixer, Slot
from etude.nn.context import Context, Peak, Route
from etude.nn.linear import Embedding, Linear, WideLinear
from etude.nn.moe import Router
from etude.nn.mtp import MTP, shift_labels
from etude.nn.residual import Layer, Residual
from etude.nn.shared import Shared
from etude.ops.attention import document_mask, document_positions, runs
from etude.ops.logp import IGNORED, label_logp
from etude.ops.rope import tables
from etude.typing import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from etude.models.checkpoint import Published

MOSTLY = 0.9  # share of places with a label from which leaving the others out saves nothing


class Scores(NamedTuple):
    """What a forward pass with labels gives.

    Attributes:
        logp: log-probability [B, T] of each label in nats, float32; 0 where the label is -100.
        entropy: entropy [B, T] of each distribution, when asked for.
        mtp: per depth, log-probabilities [B, T] and the labels [B, T] they belong to.
        routes: one per MoE layer, the MTP block last.
        peaks: one per layer of softmax attention and pass through it, when asked for.
        read: what a reader made of the hidden states, by name; `logp` is then 0 everywhere.
    """

    logp: Tensor
    entropy: Tensor | None
    mtp: tuple[tuple[Tensor, Tensor], ...]
    routes: list[Route]
    peaks: Sequence[Peak] = ()
    read: Mapping[str, Tensor] | None = None


# From normed hidden states [B, T, D] and the matrix of the head to values by position [B, T].
# Inside of the pass a head that is sharded is whole.
Reader = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


class Decoder(nn.Module):
    """A causal language model made from its description.

    Attributes:
        arch: the description.
        published: family, config and tokenizer it was loaded with; None for a bare model.
        kernels: whether engines use those of `ops.native` for it.
    """

    def __init__(self, description: arch.Decoder):
        super().__init__()
        self.arch = description
        self.published: Published | None = None
        self.kernels = False
        dim, norm = description.dim, description.norm
        self.embed = Embedding(description.vocab, dim)
        rows = description.positions
        self.positions = Embedding(rows, dim) if rows else None
        self.layers = nn.ModuleList(Layer(dim, layer, norm) for layer in description.layers)
        self.norm = build.norm(dim, norm)
        head = WideLinear if description.wide_head else Linear
        self.head = None if description.tied else head(dim, description.vocab, bias=False)
        self.mtp = MTP(dim, description.mtp, norm) if description.mtp else None
        self.ropes = self.rotary()

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
        peaks: bool = False,
        reader: Reader | None = None,
        routes: Int[Tensor, "B T L A"] | None = None,
        shared: Shared | None = None,
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
            peaks: also give the largest attention score of each head, when labels are given.
            reader: called, inside of the pass, instead of scoring the labels; see `Reader`.
            routes: experts of each MoE layer, -1 where it chooses itself; taken with labels.
            shared: which rows, of one document each, begin alike, to be scored in one pass; not
                taken where the model, a reader or peaks need whole rows.

        Returns:
            Logits [B, T, V] in float32, or `Scores` when labels are given.

        Raises:
            EtudeError: rows too long, ids or labels outside the vocabulary, a mask or documents
                that the cache cannot take.
        """
        self._check(ids, mask, segments, cache)
        mask = None if mask is None else mask.bool()
        segments = _documents(mask, segments) if cache is None else None
        if shared is not None and labels is not None and self.shares and not (peaks or reader):
            how = {"entropy": entropy, "mtp": mtp}
            return self._together(shared, ids, labels, segments, pos, temperature, routes, **how)
        x, ctx = self._begin(ids, mask, segments, pos, cache)
        ctx.routes, ctx.replay = (None, None) if labels is None else ([], routes)
        ctx.peaks = [] if peaks and labels is not None else None
        raw = self.trunk(x, ctx)
        hidden = self.norm(raw)
        if cache is not None:
            cache.commit(mask)
        if labels is None:
            return self.logits(hidden)
        how = {"entropy": entropy, "mtp": mtp and cache is None, "reader": reader}
        return self._scores(x, raw, hidden, labels, segments, ctx, temperature, **how)

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Multiply normed hidden states with the head; the result is float32 at least."""
        weight = self.head_weight
        if self.arch.wide_head and hidden.dtype != torch.float64:
            return F.linear(hidden.float(), weight.float())
        y = F.linear(hidden, weight)
        return y if y.dtype == torch.float64 else y.float()

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """Matrix of the output head."""
        return self.embed.weight if self.head is None else self.head.weight

    def trunk(self, x: Float[Tensor, "B T D"], ctx: Context) -> Float[Tensor, "B T D"]:
        """Pass embedded tokens through the layers; the final norm comes after."""
        for i, layer in enumerate(self.layers):
            ctx.layer = i
            x = layer(x, ctx)
        return x

    def mtp_logits(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B S V"]:
        """Logits of the MTP block: row p, of T - 1, speaks of token p + 2.

        Raises:
            EtudeError: the model has no such block.
        """
        if self.mtp is None:
            raise EtudeError("mtp", "this model has no MTP block")
        x, ctx = self._begin(ids, None, None, None, None)
        hidden = self.trunk(x, ctx)
        hidden = self.norm(hidden) if self.mtp.arch.start == "normed" else hidden
        _, ctx = self._begin(ids[:, 1:], None, None, None, None)
        ctx.layer = len(self.layers)
        return self.logits(self.mtp(hidden[:, :-1], x[:, 1:], ctx)[0])

    def mixers(self) -> list[nn.Module | None]:
        """Mixer of each layer of the trunk; None where a layer has only a feed-forward."""
        held = (dict(layer.named_children()).get("mixer") for layer in self.layers)
        return [part.op if isinstance(part, Residual) else None for part in held]

    @property
    def shares(self) -> bool:
        """Whether rows can share a beginning: nothing but attention looks across tokens."""
        mixers = [mixer for mixer in self.mixers() if mixer is not None]
        return all(getattr(mixer, "shares", False) for mixer in mixers)

    def slots(self) -> list[tuple[Slot, ...]]:
        """What each layer of the trunk keeps in a cache."""
        return [mixer.slots() if isinstance(mixer, Mixer) else () for mixer in self.mixers()]

    def rotary(self) -> tuple[tuple[arch.Rope, int], ...]:
        """Ropes of all layers, the extra block's too, each with the width of the heads it turns."""
        found = (getattr(module, "rotary", None) for module in self.modules() if module is not self)
        return tuple(dict.fromkeys(key for key in found if key is not None))

    def routers(self) -> Iterator[tuple[str, Router]]:
        """Yield every router with its name, in the order of `Scores.routes`."""
        return ((name, m) for name, m in self.named_modules() if isinstance(m, Router))

    def _check(
        self, ids: Tensor, mask: Tensor | None, segments: Tensor | None, cache: Cache | None
    ) -> None:
        if ids.ndim != 2 or not ids.shape[1] or ids.is_floating_point():
            found = f"{ids.dtype} of shape {list(ids.shape)}"
            raise EtudeError("ids", found, "integers [rows, tokens], one token at least")
        for name, part in (("mask", mask), ("segments", segments)):
            if part is not None and part.shape != ids.shape:
                raise EtudeError(name, f"shape {list(part.shape)}", f"{list(ids.shape)}, as ids")
        length = ids.shape[1] + (cache.longest if cache is not None else 0)
        if length > self.arch.max_length:
            most = f"at most {self.arch.max_length}"
            raise EtudeError("ids", f"{length} tokens", most, "cut or pack the rows")
        if cache is not None and segments is not None:
            raise EtudeError("segments", "given with a cache", "one document per row of a cache")

    def _begin(
        self,
        ids: Tensor,
        mask: Tensor | None,
        segments: Tensor | None,
        pos: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Context]:
        """Embed the tokens, and make what their pass tells the modules."""
        try:
            x = self.embed(ids)
        except IndexError as error:
            found, most = f"{int(ids.min())} to {int(ids.max())}", self.arch.vocab - 1
            raise EtudeError("ids", found, f"0 to {most}") from error
        reads, causal, turns = None, True, None
        if cache is not None:
            reads, causal = cache.begin(ids.shape[0], ids.shape[1], mask)
            index = cache.index()
            turns = cache.turns() if pos is None else None
        else:
            index = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
            if segments is not None:
                reads, causal, mask = document_mask(segments), False, segments != 0
        if pos is None:
            pos = index if segments is None or cache is not None else document_positions(segments)
        if turns is None:
            turns = {(rope, k): tables(pos, rope, k, dtype=x.dtype) for rope, k in self.ropes}
        if self.positions is not None:
            x = x + self.positions(pos)
        return x, Context(turns, index, reads, causal, cache, valid=mask, segments=segments)

    def _scores(
        self,
        x: Tensor,
        raw: Tensor,
        hidden: Tensor,
        labels: Tensor,
        segments: Tensor | None,
        ctx: Context,
        temperature: float,
        *,
        entropy: bool,
        mtp: bool,
        reader: Reader | None,
    ) -> Scores:
        """Score the labels, or hand the hidden states to what reads them in their place."""
        read = None if reader is None else reader(hidden, self.head_weight)
        if reader is None:
            logp, spread = self._score(hidden, labels, temperature, entropy)
        else:
            logp, spread = hidden.new_zeros(labels.shape, dtype=torch.float32), None
        ahead = ()
        if mtp and self.mtp is not None:  # a cache holds the trunk alone
            start = hidden if self.mtp.arch.start == "normed" else raw
            ahead = self._ahead(x, start, labels, segments, ctx, temperature)
        return Scores(logp, spread, ahead, list(ctx.routes or ()), list(ctx.peaks or ()), read)

    def _score(
        self,
        hidden: Tensor,
        labels: Tensor,
        temperature: float,
        entropy: bool,
        shared: Shared | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score the labels, of all places or of those alone that have one."""
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= self.arch.vocab))
        if labels.device.type == "cpu" and bool(wrong.any()):  # elsewhere it would wait
            found, most = int(labels[wrong][0]), self.arch.vocab - 1
            raise EtudeError("labels", str(found), f"0 to {most}, or {IGNORED} to ignore")
        how: Any = {"temperature": temperature, "entropy": entropy}
        flat, wanted = hidden.flatten(0, 1), labels.flatten()
        counted = None
        if labels.device.type == "cpu" or shared is not None:  # elsewhere it would wait
            counted = (wanted != IGNORED).nonzero().squeeze(1)
            if shared is None and len(counted) > MOSTLY * len(wanted):
                counted = None
        if counted is None:
            logp, spread = label_logp(flat, self.head_weight, wanted, **how)
            return logp.view_as(labels), None if spread is None else spread.view_as(labels)
        at = counted if shared is None else shared.rows.flatten()[counted]
        found = label_logp(flat.index_select(0, at), self.head_weight, wanted[counted], **how)
        logp, spread = (None if one is None else _placed(one, counted, labels) for one in found)
        assert logp is not None
        return logp, spread

    def _together(
        self,
        shared: Shared,
        ids: Tensor,
        labels: Tensor,
        segments: Tensor | None,
        pos: Tensor | None,
        temperature: float,
        routes: Tensor | None,
        *,
        entropy: bool,
        mtp: bool,
    ) -> Scores:
        """Score rows in one pass over what differs; what is told of them is told row by row."""
        if pos is None:
            pos = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x, ctx = self._begin(shared.take(ids), None, None, shared.take(pos), None)
        ctx.routes, ctx.shared = [], shared
        ctx.replay = None if routes is None else shared.take(routes)
        raw = self.trunk(x, ctx)
        hidden = self.norm(raw)
        logp, spread = self._score(hidden, labels, temperature, entropy, shared)
        valid = torch.ones_like(ids, dtype=torch.bool) if segments is None else segments != 0
        found, ahead = [], ()
        for route in ctx.routes:
            scores, chosen = shared.spread(route.scores), shared.spread(route.chosen)
            found.append(Route(route.layer, scores, chosen, valid))
        if mtp and self.mtp is not None:
            start = shared.spread(hidden if self.mtp.arch.start == "normed" else raw)
            x, ctx = self._begin(ids, None, segments, pos, None)
            ctx.routes = found
            ahead = self._ahead(x, start, labels, segments, ctx, temperature)
        return Scores(logp, spread, ahead, found)

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


def _placed(values: Tensor, at: Tensor, like: Tensor) -> Tensor:
    """Return values of counted places among zeros for the others."""
    return values.new_zeros(like.numel()).index_copy(0, at, values).view_as(like)


def _documents(
    mask: Bool[Tensor, "B T"] | None, segments: Int[Tensor, "B T"] | None
) -> Int[Tensor, "B T"] | None:
    """Number the documents of each row, 0 on padding; None where nothing is packed or padded."""
    if segments is not None:
        return runs(segments if mask is None else segments * mask)
    if mask is None:
        return None
    starts = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
    if bool((starts > 1).any()):  # behind a hole positions would silently start anew
        raise EtudeError("mask", "padding between tokens", "tokens of a row side by side")
    return mask.long()
