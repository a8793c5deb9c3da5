"""What mixes positions: softmax attention, latent attention, linear attention, state spaces."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.arch.rules import FORBID, require


@dataclass(frozen=True, slots=True, config=FORBID)
class YaRN:
    """Longer contexts by slowing the rotations that do not complete a turn (arXiv:2309.00071).

    A ramp joins the frequencies that stay and those that are divided. `mscale` and `mscale_all_dim`
    are as DeepSeek-V2 defines them (arXiv:2405.04434); transformers takes neither unless both are
    given.

    Args:
        factor: divides the slow frequencies.
        original_length: context the model was trained at, in tokens.
        beta_fast: frequencies with more turns than this within that length stay.
        beta_slow: those with fewer are divided by the factor.
        mscale: amplitude of the tables, 0.1 mscale ln(factor) + 1, over that of mscale_all_dim.
        mscale_all_dim: its amplitude squared multiplies the scores of latent attention.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        require(self.factor >= 1, "yarn.factor", str(self.factor), "1 or more")
        turns = self.beta_fast, self.beta_slow
        require(
            turns[0] >= turns[1] > 0, "yarn.beta_fast", f"fast, slow {turns}", "fast >= slow > 0"
        )
        length = self.original_length
        require(length > 0, "yarn.original_length", str(length), "the trained length in tokens")

    def amplitude(self, mscale: float) -> float:
        """Return 0.1 m ln(factor) + 1, by which entropy is kept as the context grows."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True, slots=True, config=FORBID)
class Rope:
    """Rotary positions on the first `fraction` of each head.

    pairs="half" turns dimension i together with i + width / 2 (GPT-NeoX); "interleaved" turns
    neighbours 2i and 2i + 1 (the original RoFormer).
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    pairs: Literal["half", "interleaved"] = "half"
    scaling: YaRN | None = None

    def __post_init__(self) -> None:
        require(1 < self.theta < math.inf, "rope.theta", str(self.theta), "a base above 1")
        require(0 < self.fraction <= 1, "rope.fraction", str(self.fraction), "a share in (0, 1]")

    @classmethod
    def read(
        cls,
        hf: Mapping[str, Any],
        *,
        fraction: float = 1.0,
        pairs: Literal["half", "interleaved"] = "half",
    ) -> "Rope":
        """Read the flat keys or the `rope_parameters` block of a published config.

        Args:
            hf: the content of config.json.
            fraction: share of each head that turns where the file is silent.
            pairs: which dimensions turn together; no file says it.

        Raises:
            EtudeError: the file asks for a kind of scaling that this description cannot say, or for
                YaRN without the length it was trained at.
        """
        block: dict[str, Any] = {}
        for key in ("rope_scaling", "rope_parameters"):
            part = hf.get(key) or {}
            require(isinstance(part, Mapping), f"config.json: {key}", repr(part), "a mapping")
            block |= part
        kind = block.get("rope_type") or block.get("type") or "default"
        known = "'default' (no scaling) or 'yarn'"
        require(kind in ("default", "yarn"), "config.json: rope_type", repr(kind), known)
        share = block.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
        theta = block.get("rope_theta", hf.get("rope_theta"))
        return cls(
            theta=10_000.0 if theta is None else theta,
            fraction=fraction if share is None else share,
            pairs=pairs,
            scaling=_yarn(block) if kind == "yarn" else None,
        )

    def width(self, head_dim: int) -> int:
        """Return how many dimensions of a head turn."""
        return int(head_dim * self.fraction)


def _yarn(block: Mapping[str, Any]) -> YaRN:
    length, where = block.get("original_max_position_embeddings"), "config.json: rope_scaling"
    needed = "the length it was trained at"
    require(length is not None, where, "yarn without original_max_position_embeddings", needed)
    # both would change the numbers, and no release uses them
    for key, usual in (("attention_factor", None), ("truncate", True)):
        found = f"{key} {block.get(key)}"
        require(block.get(key, usual) in (usual, None), where, found, f"{key} {usual}, or none")
    known = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    given = {key: block[key] for key in known if block.get(key) is not None}
    return YaRN(factor=block["factor"], original_length=length or 0, **given)


@dataclass(frozen=True, slots=True, config=FORBID)
class Banded:
    """Query i reads keys i - width + 1 to i, and with a stride also those a multiple of it back.

    Source: arXiv:2005.14165, section 2.1, after arXiv:1904.10509.
    """

    width: int
    stride: int | None = None

    def __post_init__(self) -> None:
        require(self.width > 0, "banded.width", str(self.width), "1 or more tokens")
        stride = self.stride
        require(stride is None or stride > 0, "banded.stride", str(stride), "1 or more, or none")


@dataclass(frozen=True, slots=True, config=FORBID)
class Attention:
    """Causal softmax attention with grouped keys and values.

    Query head j reads key/value head j // (heads / kv_heads). `qk_norm` normalises each query and
    key head before it turns, with one weight vector for all heads and the decoder's eps. `scale`
    multiplies the scores, 1 / sqrt(head_dim) where it is None. `span` limits how far back a query
    reads; None reads all.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    rope: Rope | None = None
    scale: float | None = None
    span: Banded | None = None
    kind: Literal["attention"] = "attention"

    def __post_init__(self) -> None:
        sizes = (self.heads, self.kv_heads, self.head_dim)
        require(min(sizes) > 0, "attention", f"sizes {sizes}", "positive numbers")
        require(
            self.heads % self.kv_heads == 0,
            "attention.kv_heads",
            str(self.kv_heads),
            f"a divisor of {self.heads} heads",
        )
        if self.rope:
            _even(self.rope, self.head_dim)


@dataclass(frozen=True, slots=True, config=FORBID)
class MLA:
    """Multi-head latent attention: keys and values of all heads from one latent per token.

    A head's query and key have `nope` dimensions that do not turn and `rope_dim` that do; the
    turning part of the key is one vector shared by all heads. `q_rank` None projects queries
    directly. `norm_eps` belongs to the norms of the two latents.

    Source: arXiv:2405.04434, section 2.1.
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope: int
    rope_dim: int
    value: int
    rope: Rope
    norm_eps: float = 1e-6
    bias: bool = False
    kind: Literal["mla"] = "mla"

    def __post_init__(self) -> None:
        sizes = (self.heads, self.q_rank or 1, self.kv_rank, self.nope, self.rope_dim, self.value)
        require(min(sizes) > 0, "mla", f"sizes {sizes}", "positive numbers")
        require(self.rope.fraction == 1, "rope.fraction", str(self.rope.fraction), "1 with mla")
        _even(self.rope, self.rope_dim)

    @property
    def key(self) -> int:
        """Width of a query or key head."""
        return self.nope + self.rope_dim

    @property
    def scale(self) -> float:
        """Return what multiplies the scores, with the amplitude of YaRN on both sides."""
        yarn = self.rope.scaling
        square = yarn.amplitude(yarn.mscale_all_dim) ** 2 if yarn and yarn.mscale_all_dim else 1.0
        return self.key**-0.5 * square


@dataclass(frozen=True, slots=True, config=FORBID)
class Lightning:
    """Linear attention with a fixed scalar decay per head, in blocks.

    S_t = exp(-s_h) S_{t-1} + k_t v_t^T and o_t = q_t^T S_t, with silu on q, k and v, a norm over
    all heads and a sigmoid gate. Head h of H decays by s_h = slope(h) * decay; decay 0 is linear
    attention without forgetting. The slopes are those of ALiBi, or "even": 2^(-8 (h + 1) / H). Both
    are the same where H is a power of two.

    Source: arXiv:2501.08313, section 2.2.
    """

    heads: int
    head_dim: int
    decay: float = 1.0
    block: int = 256
    norm_eps: float = 1e-6
    slope: Literal["alibi", "even"] = "alibi"
    kind: Literal["lightning"] = "lightning"

    def __post_init__(self) -> None:
        sizes = (self.heads, self.head_dim, self.block)
        require(min(sizes) > 0, "lightning", f"sizes {sizes}", "positive numbers")
        require(self.decay >= 0, "lightning.decay", str(self.decay), "0 or more")

    @property
    def slopes(self) -> tuple[float, ...]:
        """Decay rate of each head."""
        rule = alibi if self.slope == "alibi" else even
        return tuple(slope * self.decay for slope in rule(self.heads))


@dataclass(frozen=True, slots=True, config=FORBID)
class Mamba2:
    """Selective state space with one scalar decay per head and token.

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, y_t = S_t C_t + D x_t. Head h reads group
    h // (heads / groups) of B and C. `conv` is the width of the causal convolution; `dt_limit`
    clamps the step sizes (None: no upper limit); `dt_init` are the least and greatest step at the
    start, and a floor.

    Source: arXiv:2405.21060, section 7.
    """

    heads: int
    head_dim: int
    state: int
    groups: int = 1
    conv: int = 4
    chunk: int = 128
    conv_bias: bool = True
    bias: bool = False
    dt_limit: tuple[float, float | None] = (0.0, None)
    dt_init: tuple[float, float, float] = (1e-3, 1e-1, 1e-4)
    kind: Literal["mamba2"] = "mamba2"

    def __post_init__(self) -> None:
        sizes = (self.heads, self.head_dim, self.state, self.groups, self.conv, self.chunk)
        require(min(sizes) > 0, "mamba2", f"sizes {sizes}", "positive numbers")
        divisor = f"a divisor of {self.heads} heads"
        require(self.heads % self.groups == 0, "mamba2.groups", str(self.groups), divisor)
        low, high = self.dt_limit
        ordered = low >= 0 and (high is None or high > low)
        require(ordered, "mamba2.dt_limit", str(self.dt_limit), "a range from 0 or more upwards")
        least, most, floor = self.dt_init
        ordered = 0 < least <= most and floor > 0
        require(ordered, "mamba2.dt_init", str(self.dt_init), "least, most and floor above 0")

    @property
    def inner(self) -> int:
        """Width of the values of all heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: values, and B and C of every group."""
        return self.inner + 2 * self.groups * self.state


Mixer = Annotated[Attention | MLA | Lightning | Mamba2, Field(discriminator="kind")]
MIXERS = (Attention, MLA, Lightning, Mamba2)


def alibi(heads: int) -> tuple[float, ...]:
    """Slopes 2^(-8 (h + 1) / H); for H no power of two, those of the next lower power and others.

    The others are every second slope of twice that power (arXiv:2108.12409, and its code).
    """
    power = 2 ** (heads.bit_length() - 1)
    return even(power) + even(2 * power)[::2][: heads - power]


def even(heads: int) -> tuple[float, ...]:
    """Slopes 2^(-8 (h + 1) / H)."""
    return tuple(2 ** (-8 * (h + 1) / heads) for h in range(heads))


def _even(rope: Rope, head_dim: int) -> None:
    width = rope.width(head_dim)
    found = f"{rope.fraction} of head width {head_dim} turns {width} dimensions"
    require(width > 0 and width % 2 == 0, "rope.fraction", found, "an even number of them")
