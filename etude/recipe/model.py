"""The model of a recipe: family and size, or a checkpoint, and the parts swapped in it."""

from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.arch.swap import FfnKind, MatchKind, MixerKind, NormKind, RouterKind
from etude.recipe.numbers import CONFIG, Positive


@dataclass(frozen=True, slots=True, config=CONFIG)
class Model:
    """Where the weights come from: a family and size made here, or a published checkpoint.

    Parts of a model made here can be swapped for those of another report; see `etude.arch.swap` for
    what follows from what.

    Args:
        family: name of a system, for example `glm45`.
        size: a name from the family's table (`tiny`, `mini`, `air`, `full`).
        config: fields of the published config.json to change, for example `num_hidden_layers`.
        path: folder or hub name of a checkpoint to start from instead.
        mixer: what mixes positions instead of the family's own.
        every: each so-manyth mixer is left as it is; 8 is seven swapped to one kept.
        window: tokens that `banded` attention reads; None is 64.
        ffn: other feed-forwards.
        router: other scores of the experts.
        norm: other norms of the stream.
        match: scale the feed-forwards so that the model has the parameters, or the FLOPs per token,
            that it had before the swap.
    """

    family: str | None = None
    size: str = "tiny"
    config: dict[str, Any] = Field(default_factory=dict)
    path: str | None = None
    mixer: MixerKind | None = None
    every: Annotated[int, Field(gt=1)] | None = None
    window: Positive | None = None
    ffn: FfnKind | None = None
    router: RouterKind | None = None
    norm: NormKind | None = None
    match: MatchKind | None = None

    def __post_init__(self) -> None:
        """Exactly one origin, and a swap that can be made."""
        if (self.family is None) == (self.path is None):
            raise ValueError("give either family (with size) or path")
        if self.config and self.path is not None:
            raise ValueError("config changes a size's own; a checkpoint brings its config.json")
        if self.swapped and self.path is not None:
            raise ValueError("parts of a checkpoint cannot be swapped: its weights would not fit")
        if self.every is not None and self.mixer is None:
            raise ValueError("every says which mixers are kept, so it needs a mixer to swap for")
        if self.window is not None and self.mixer != "banded":
            raise ValueError("window belongs to mixer: banded")
        if self.match is not None and not self.swapped:
            raise ValueError("match needs a mixer, ffn, router or norm to swap for")

    @property
    def swapped(self) -> bool:
        """Whether any part is swapped."""
        return any((self.mixer, self.ffn, self.router, self.norm))
