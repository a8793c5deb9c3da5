"""The parts of a description: small frozen classes, each with only its own fields."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from etude.errors import EtudeError

_FORBID = ConfigDict(extra="forbid")


def _require(holds: bool, where: str, found: str, expected: str) -> None:
    if not holds:
        raise EtudeError(where, found, expected)


@dataclass(frozen=True, slots=True, config=_FORBID)
class Norm:
    """Root-mean-square norm, cast back to the input's dtype before the weight multiplies."""

    eps: float = 1e-5
    kind: Literal["rms"] = "rms"


@dataclass(frozen=True, slots=True, config=_FORBID)
class Rope:
    """Rotary positions on the first `fraction` of each head.

    pairs="half" turns dimension i together with i + width / 2 (GPT-NeoX), never neighbours.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    pairs: Literal["half"] = "half"

    def __post_init__(self) -> None:
        _require(self.theta > 0, "rope.theta", str(self.theta), "a positive base")
        _require(0 < self.fraction <= 1, "rope.fraction", str(self.fraction), "a share in (0, 1]")

    @classmethod
    def read(cls, hf: Mapping[str, Any], *, fraction: float = 1.0) -> "Rope":
        """Read the flat keys or the `rope_parameters` block of a published config.

        Args:
            hf: the content of config.json.
            fraction: share of each head that turns where the file is silent.

        Raises:
            EtudeError: the file asks for a kind of scaling that this description cannot say.
        """
        block = hf.get("rope_parameters") or {}
        scaling = hf.get("rope_scaling") or {}
        kind = (
            block.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
        )
        _require(kind == "default", "config.json: rope_type", repr(kind), "'default' (no scaling)")
        share = block.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
        theta = block.get("rope_theta", hf.get("rope_theta"))
        return cls(
            theta=10_000.0 if theta is None else theta,
            fraction=fraction if share is None else share,
        )

    def width(self, head_dim: int) -> int:
        """Return how many dimensions of a head turn."""
        return int(head_dim * self.fraction)


@dataclass(frozen=True, slots=True, config=_FORBID)
class Attention:
    """Causal softmax attention with grouped keys and values.

    Query head j reads key/value head j // (heads / kv_heads). `qk_norm` normalises each query and
    key head before it turns, with one weight vector for all heads and the decoder's eps.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    qk_norm: bool = False
    rope: Rope | None = None
    kind: Literal["attention"] = "attention"

    def __post_init__(self) -> None:
        sizes = (self.heads, self.kv_heads, self.head_dim)
        _require(min(sizes) > 0, "attention", f"sizes {sizes}", "positive numbers")
        _require(
            self.heads % self.kv_heads == 0,
            "attention.kv_heads",
            str(self.kv_heads),
            f"a divisor of {self.heads} heads",
        )
        if self.rope:
            width = self.rope.width(self.head_dim)
            found = f"{self.rope.fraction} of head width {self.head_dim} turns {width} dimensions"
            _require(width > 0 and width % 2 == 0, "rope.fraction", found, "an even number of them")


@dataclass(frozen=True, slots=True, config=_FORBID)
class MLP:
    """Two-layer feed-forward; gated: down(activation(gate x) * (up x))."""

    hidden: int
    gated: bool = True
    activation: Literal["silu", "gelu"] = "silu"
    kind: Literal["mlp"] = "mlp"

    def __post_init__(self) -> None:
        _require(self.hidden > 0, "mlp.hidden", str(self.hidden), "a positive width")


@dataclass(frozen=True, slots=True, config=_FORBID)
class Router:
    """How tokens choose experts.

    `bias`: a float32 vector without gradient, added for the choice only and never to the weights.
    `groups`: the experts stand in that many groups, of which the `group_topk` with the best
    two-expert sums stay eligible. `scale` multiplies after the normalisation.
    """

    score: Literal["sigmoid", "softmax"] = "sigmoid"
    bias: bool = False
    groups: int = 1
    group_topk: int = 1
    normalize: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        _require(self.groups > 0, "router.groups", str(self.groups), "a positive number")
        _require(
            0 < self.group_topk <= self.groups,
            "router.group_topk",
            str(self.group_topk),
            f"1 to {self.groups} groups",
        )


@dataclass(frozen=True, slots=True, config=_FORBID)
class MoE:
    """Routed experts beside an optional shared one that sees every token."""

    expert: MLP
    experts: int
    active: int
    shared: MLP | None = None
    router: Router = Router()
    kind: Literal["moe"] = "moe"

    def __post_init__(self) -> None:
        groups = self.router.groups
        _require(
            self.experts % groups == 0,
            "moe.experts",
            str(self.experts),
            f"a multiple of {groups} groups",
        )
        eligible = self.experts // groups * self.router.group_topk
        _require(
            0 < self.active <= eligible,
            "moe.active",
            str(self.active),
            f"1 to {eligible} eligible experts",
        )
        if groups > 1:
            size = self.experts // groups
            _require(
                size > 1, "router.groups", f"{groups} groups of one expert", "groups of two or more"
            )


Op = Annotated[Attention | MLP | MoE, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, config=_FORBID)
class Residual:
    """One sublayer and the way it joins the stream.

    skip="input": alpha * x + beta * op(norm(x)); skip="normed": alpha * norm(x) + beta *
    op(norm(x)). `norm` None stands for the decoder's own.
    """

    op: Op
    norm: Norm | None = None
    skip: Literal["input", "normed"] = "input"
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def role(self) -> Literal["mixer", "ffn"]:
        """Name of the sublayer in its layer: what mixes positions, or what works on each alone."""
        return "mixer" if isinstance(self.op, Attention) else "ffn"


Layer = tuple[Residual, ...]


@dataclass(frozen=True, slots=True, config=_FORBID)
class MTP:
    """A block after the trunk that predicts the token after next; depth k chains it k times.

    `carry`: what one step hands the next, the normed hidden (the default) or the raw one. `copies`:
    published files store the embedding and the head once more beside the block.
    """

    depth: int
    layer: Layer
    carry: Literal["normed", "raw"] = "normed"
    copies: bool = True

    def __post_init__(self) -> None:
        _require(self.depth > 0, "mtp.depth", str(self.depth), "1 or more (no block: mtp=None)")


@dataclass(frozen=True, slots=True, config=_FORBID)
class Decoder:
    """Embedding, layers, final norm, head and, when given, a multi-token prediction block."""

    dim: int
    vocab: int
    layers: tuple[Layer, ...]
    norm_eps: float = 1e-5
    tied: bool = False
    mtp: MTP | None = None
    max_length: int = 131_072
    init_std: float = 0.02

    def __post_init__(self) -> None:
        sizes = (self.dim, self.vocab, len(self.layers), self.max_length)
        _require(
            min(sizes) > 0, "decoder", f"dim, vocab, layers, max_length {sizes}", "positive numbers"
        )
        for i, layer in enumerate((*self.layers, *([self.mtp.layer] if self.mtp else []))):
            roles = [part.role for part in layer]
            _require(
                bool(roles) and len(set(roles)) == len(roles),
                f"layer {i}",
                str(roles),
                "at most one of each role",
            )

    @property
    def norm(self) -> Norm:
        """The norm used wherever a part names none."""
        return Norm(eps=self.norm_eps)


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
            raise EtudeError(f"config.json: {where}", repr(first["input"]), first["msg"]) from error
        except TypeError as error:
            raise EtudeError("config.json", f"a value of the wrong type ({error})") from error

    return reader
