"""What a forward pass tells its modules: positions, document borders, cache, list of routes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from etude import arch
from etude.typing import Bool, Float, Tensor

if TYPE_CHECKING:
    from etude.nn.cache import Cache


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


class Packs(Protocol):
    """A module that lays its weights out for a pass: several matrices as one."""

    def pack(self) -> tuple[Any, ...]:
        """Return the weights as `forward` reads them; gradients flow back to the parameters."""
        ...


@dataclass(slots=True)
class Context:
    """State of one forward pass; modules read it, the decoder alone sets it.

    Attributes:
        tables: cosine and sine of each token's position for each rope of the model, made once per
            forward.
        mask: which keys each query may read, or None where `causal` says it all.
        causal: query t reads keys 0..t of the same pass.
        cache: keys, values and states of earlier passes; None while training.
        routes: filled by MoE layers when it is a list.
        valid: false on padding; None when there is none.
        layer: the layer that runs now; picks its slots in the cache.
    """

    tables: dict[arch.Rope, tuple[Float[Tensor, "#B T 1 K"], Float[Tensor, "#B T 1 K"]]]
    mask: Bool[Tensor, "B 1 T S"] | None = None
    causal: bool = True
    cache: "Cache | None" = None
    routes: list[Route] | None = None
    valid: Bool[Tensor, "B T"] | None = None
    layer: int = 0

    def packed(self, module: Packs) -> tuple[Any, ...]:
        """Return a module's weights as it reads them: anew in training, once per cache."""
        return module.pack() if self.cache is None else self.cache.packed(module)
