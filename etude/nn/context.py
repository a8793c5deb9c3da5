"""What a forward pass tells its modules: positions, document borders, cache, list of routes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from etude import arch
from etude.nn.shared import Shared
from etude.ops.attention import peak_scores
from etude.typing import Bool, Float, Int, Tensor

# cosine and sine [#B, T, 1, K] of each token's position, by rope and width K of a head
Turns = dict[tuple[arch.Rope, int], tuple[Tensor, Tensor]]


class Route(NamedTuple):
    """How one MoE layer spread its tokens.

    Attributes:
        layer: published number of the layer; the MTP block counts on from the trunk.
        scores: affinities [B, T, E] without bias, with gradient.
        chosen: experts [B, T, A] of each token.
        valid: [B, T], false on padding.
    """

    layer: int
    scores: Tensor
    chosen: Tensor
    valid: Tensor


class Peak(NamedTuple):
    """Largest attention score of each head of one layer, over all pairs of tokens that it read.

    Attributes:
        layer: as of a route.
        top: [H], scaled as the softmax takes them, without gradient.
    """

    layer: int
    top: Tensor


class Packs(Protocol):
    """A module that lays its weights out for a pass: several matrices as one."""

    def pack(self) -> tuple[Any, ...]:
        """Return the weights as `forward` reads them; gradients flow back to the parameters."""
        ...


@runtime_checkable
class Memory(Protocol):
    """What mixers ask of a cache; `nn.cache.Cache` is one, the engine has others."""

    def extend(self, layer: int, **new: Tensor) -> tuple[Tensor, ...]:
        """Store the new values [B, T, ...] of a layer; return all that its queries may need."""
        ...

    def state(self, layer: int, name: str) -> Tensor:
        """Return a state [B, ...] of a layer as the tokens so far have left it."""
        ...

    def put(self, layer: int, **new: Tensor) -> None:
        """Store the states [B, ...] of a layer, which padding must not have moved."""
        ...

    def packed(self, module: Packs) -> tuple[Any, ...]:
        """Return a module's weights as it reads them, laid out once."""
        ...


class Group(NamedTuple):
    """Sequences of a flat pass that are worked on as one block of rows.

    Attributes:
        at: [b, t], place of each of their tokens in the flat pass.
        ctx: what the pass tells about them alone; its cache holds their memory.
    """

    at: Tensor
    ctx: "Context"


@dataclass(slots=True)
class Context:
    """State of one forward pass; modules read it, the decoder alone sets it.

    Attributes:
        tables: cosine and sine of each token's position for each rope of the model and width of a
            head, made once per forward.
        mask: which keys each query may read, or None where `causal` says it all.
        causal: each query reads the keys up to its own, where the last key is the last query's.
        cache: keys, values and states of earlier passes; None while training.
        routes: filled by MoE layers when it is a list.
        replay: experts [B, T, layers, active] that MoE layers of the trunk take instead of their
            own choice; -1 leaves it to them. Counted by `routes`.
        peaks: filled by layers of softmax attention when it is a list.
        valid: false on padding; None when there is none.
        segments: document of each token, 0 on padding; None when each row is one document, as it
            always is with a cache. A recurrence starts anew where it changes.
        index: place of each token in its row, which with a cache counts the tokens before this
            pass.
        layer: the layer that runs now; picks its slots in the cache.
        groups: of a flat pass, whose single row [1, N] holds tokens of many sequences; else None.
        shared: of one in which rows share their beginnings; else None.
    """

    tables: Turns
    index: Int[Tensor, "#B T"]
    mask: Bool[Tensor, "B 1 T S"] | None = None
    causal: bool = True
    cache: Memory | None = None
    routes: list[Route] | None = None
    replay: Int[Tensor, "B T L A"] | None = None
    peaks: list[Peak] | None = None
    valid: Bool[Tensor, "B T"] | None = None
    segments: Int[Tensor, "B T"] | None = None
    layer: int = 0
    groups: list[Group] | None = None
    shared: Shared | None = None

    def each(self, mix: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """Run what looks across tokens: once for rows of their own, per group in a flat pass.

        Args:
            mix: takes a context and the parts [B, T, ...], returns [B, T, ...].
            parts: what the tokens bring, [B, T, ...], or [1, N, ...] in a flat pass.
        """
        if self.shared is not None:
            return self.shared.attend(mix, self, *parts)
        if self.groups is None:
            return mix(self, *parts)
        out: Tensor | None = None
        for at, ctx in self.groups:
            ctx.layer = self.layer
            y = mix(ctx, *(part[0, at] for part in parts))
            if out is None:
                out = y.new_empty(1, parts[0].shape[1], *y.shape[2:])
            out[0, at] = y
        return parts[0] if out is None else out

    def watch(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B G S K"],
        *,
        scale: float | None,
        mask: Bool[Tensor, "#B 1 T S"] | None = None,
    ) -> None:
        """Record the largest scores of the layer that runs.

        Args:
            q, k: heads as attention takes them.
            scale: of the scores.
            mask: what the layer may read, where that is less than what the pass may.
        """
        if self.peaks is not None:
            causal = mask is None and self.causal
            reads = self.mask if mask is None else mask
            top = peak_scores(q, k, mask=reads, causal=causal, valid=self.valid, scale=scale)
            self.peaks.append(Peak(self.layer, top))

    def replayed(self) -> Int[Tensor, "N A"] | None:
        """Experts that were recorded for the MoE layer that runs; None where it is free."""
        done = len(self.routes or ())
        if self.replay is None or done >= self.replay.shape[2]:
            return None
        return self.replay[:, :, done].flatten(0, 1)

    def packed(self, module: Packs) -> tuple[Any, ...]:
        """Return a module's weights as it reads them: anew in training, once per cache."""
        return module.pack() if self.cache is None else self.cache.packed(module)
