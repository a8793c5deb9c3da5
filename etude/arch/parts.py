"""The parts of a description: small frozen classes, each with only its own fields."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from etude.arch.mixers import MIXERS, MLA, Attention, Lightning, Mamba2
from etude.arch.rules import FORBID, require
from etude.errors import EtudeError


@dataclass(frozen=True, slots=True, config=FORBID)
class Norm:
    """Root-mean-square norm.

    cast="before" returns to the input's dtype before the weight multiplies (Llama), "after"
    multiplies in float32 and casts last; they differ in the last bit of a narrow dtype.
    """

    eps: float = 1e-5
    cast: Literal["before", "after"] = "before"
    kind: Literal["rms"] = "rms"

    def __post_init__(self) -> None:
        require(0 <= self.eps < 1, "norm.eps", str(self.eps), "a small number")


@dataclass(frozen=True, slots=True, config=FORBID)
class LayerNorm:
    """Mean and variance norm with a gain and a bias."""

    eps: float = 1e-5
    kind: Literal["layer"] = "layer"

    def __post_init__(self) -> None:
        require(0 <= self.eps < 1, "norm.eps", str(self.eps), "a small number")


AnyNorm = Annotated[Norm | LayerNorm, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, config=FORBID)
class MLP:
    """Two-layer feed-forward; gated: down(activation(gate x) * (up x)).

    "gelu_tanh" is the approximation of GPT-2, "relu2" the square of relu.
    """

    hidden: int
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2"] = "silu"
    bias: bool = False
    kind: Literal["mlp"] = "mlp"

    def __post_init__(self) -> None:
        require(self.hidden > 0, "mlp.hidden", str(self.hidden), "a positive width")


@dataclass(frozen=True, slots=True, config=FORBID)
class Router:
    """How tokens choose experts.

    `bias`: a float32 vector without gradient, added for the choice only and never to the weights.
    `groups`: the experts stand in that many groups, of which the `group_topk` with the best
    two-expert sums stay eligible. `scale` multiplies after the normalisation. `wide`: the weight is
    kept in float32 whatever the model's dtype.
    """

    score: Literal["sigmoid", "softmax"] = "sigmoid"
    bias: bool = False
    groups: int = 1
    group_topk: int = 1
    normalize: bool = True
    scale: float = 1.0
    wide: bool = False

    def __post_init__(self) -> None:
        require(math.isfinite(self.scale), "router.scale", str(self.scale), "a number")
        require(self.groups > 0, "router.groups", str(self.groups), "a positive number")
        require(
            0 < self.group_topk <= self.groups,
            "router.group_topk",
            str(self.group_topk),
            f"1 to {self.groups} groups",
        )


@dataclass(frozen=True, slots=True, config=FORBID)
class MoE:
    """Routed experts beside an optional shared one that sees every token.

    `latent`: the routed experts work on a projection of that width, projected back after their
    sum; router and shared expert see the full width (LatentMoE).
    """

    expert: MLP
    experts: int
    active: int
    shared: MLP | None = None
    router: Router = Router()
    latent: int | None = None
    kind: Literal["moe"] = "moe"

    def __post_init__(self) -> None:
        groups = self.router.groups
        require(
            self.experts % groups == 0,
            "moe.experts",
            str(self.experts),
            f"a multiple of {groups} groups",
        )
        latent = self.latent
        require(
            latent is None or latent > 0, "moe.latent", str(latent), "a positive width, or none"
        )
        biased = self.expert.bias or bool(self.shared and self.shared.bias)
        require(not biased, "moe.expert.bias", "true", "experts without biases")
        eligible = self.experts // groups * self.router.group_topk
        require(
            0 < self.active <= eligible,
            "moe.active",
            str(self.active),
            f"1 to {eligible} eligible experts",
        )
        if groups > 1:
            size = self.experts // groups
            require(
                size > 1, "router.groups", f"{groups} groups of one expert", "groups of two or more"
            )


Op = Annotated[Attention | MLA | Lightning | Mamba2 | MLP | MoE, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, config=FORBID)
class Residual:
    """One sublayer and the way it joins the stream.

    skip="input": alpha * x + beta * op(norm(x)); skip="normed": alpha * norm(x) + beta *
    op(norm(x)). `norm` None stands for the decoder's own.
    """

    op: Op
    norm: AnyNorm | None = None
    skip: Literal["input", "normed"] = "input"
    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        finite = math.isfinite(self.alpha) and math.isfinite(self.beta)
        require(finite, "residual", f"alpha {self.alpha}, beta {self.beta}", "numbers")

    @property
    def role(self) -> Literal["mixer", "ffn"]:
        """Name of the sublayer in its layer: what mixes positions, or what works on each alone."""
        return "mixer" if isinstance(self.op, MIXERS) else "ffn"


Layer = tuple[Residual, ...]


@dataclass(frozen=True, slots=True, config=FORBID)
class MTP:
    """A block after the trunk that predicts the token after next; depth k chains it k times.

    `start`: what the first step takes of the trunk, its final norm's output or the input of it.
    `carry`: what one step hands the next, the normed hidden (the default) or the raw one. `first`:
    which half of the join's input comes first. `copies`: published files store the embedding and
    the head once more beside the block.
    """

    depth: int
    layer: Layer
    carry: Literal["normed", "raw"] = "normed"
    start: Literal["normed", "raw"] = "normed"
    first: Literal["embedding", "hidden"] = "embedding"
    copies: bool = True

    def __post_init__(self) -> None:
        require(self.depth > 0, "mtp.depth", str(self.depth), "1 or more (no block: mtp=None)")


@dataclass(frozen=True, slots=True, config=FORBID)
class Init:
    """First values: matrices normal with `std`, outputs of residual branches times `residual`.

    rule="xavier" draws with std sqrt(2 / (in + out)) instead, and `gain` then multiplies the
    matrices that DeepNorm scales: values, outputs and feed-forwards (arXiv:2203.00555). `positions`
    is the standard deviation of a learned table of positions, `std` where it is None.
    """

    std: float = 0.02
    residual: float = 1.0
    rule: Literal["normal", "xavier"] = "normal"
    gain: float = 1.0

    def __post_init__(self) -> None:
        for name in ("std", "residual", "gain"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"init.{name}", str(value), "0 or more")

    positions: float | None = None


@dataclass(frozen=True, slots=True, config=FORBID)
class Decoder:
    """Embedding, layers, final norm, head and, when given, a multi-token prediction block.

    `norm` is used wherever a part names none. `positions`: rows of a learned table that is added to
    the embedding; None has no table. `wide_head`: the head's weight is kept and multiplied in
    float32 whatever the model's dtype.
    """

    dim: int
    vocab: int
    layers: tuple[Layer, ...]
    norm: AnyNorm = Norm()
    tied: bool = False
    positions: int | None = None
    wide_head: bool = False
    mtp: MTP | None = None
    max_length: int = 131_072
    init: Init = Init()

    def __post_init__(self) -> None:
        sizes = (self.dim, self.vocab, len(self.layers), self.max_length)
        require(
            min(sizes) > 0, "decoder", f"dim, vocab, layers, max_length {sizes}", "positive numbers"
        )
        rows = self.positions
        enough = rows is None or rows >= self.max_length
        require(enough, "decoder.positions", str(rows), f"{self.max_length} rows at least")
        for i, layer in enumerate((*self.layers, *([self.mtp.layer] if self.mtp else []))):
            roles = [part.role for part in layer]
            require(
                bool(roles) and len(set(roles)) == len(roles),
                f"layer {i}",
                str(roles),
                "at most one of each role",
            )


def reads_config(read: Callable[[dict[str, Any]], Decoder]) -> Callable[[dict[str, Any]], Decoder]:
    """Answer a missing key or a value of the wrong type of a config.json with one clear line."""

    @wraps(read)
    def reader(hf: dict[str, Any]) -> Decoder:
        try:
            return read(hf)
        except KeyError as error:
            raise EtudeError("config.json", f"no {error.args[0]!r}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = f"{error.title.lower()}.{'.'.join(map(str, first['loc']))}"
            found = f"{first['input']!r}: {first['msg']}"
            raise EtudeError(f"config.json: {where}", found) from error
        except (TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
            raise EtudeError("config.json", f"a value of the wrong type ({error})") from error

    return reader
