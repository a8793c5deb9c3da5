"""What joins every policy objective: corrections of the sampler, the KL term, PPO's critic.

The formulas are in `etude.objectives.mismatch`, `etude.objectives.kl` and `etude.objectives.value`.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from etude.recipe.advantages import named
from etude.recipe.numbers import CONFIG, Count, Positive, Rate

Width = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True, config=CONFIG)
class Bypass:
    """Ratios to the sampler's own probabilities; the trainer's old ones are not computed."""

    kind: Literal["bypass"] = "bypass"


@dataclass(frozen=True, slots=True, config=CONFIG)
class TisToken:
    """Weigh a token by min(w, cap), w = trainer's / sampler's probability (slime, verl: 2)."""

    kind: Literal["tis_token"] = "tis_token"
    cap: Rate = 2.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class MaskToken:
    """Weigh a token by w where low <= w <= high, else drop it (IcePop; NeMo-RL: 0.5 and 5)."""

    kind: Literal["mask_token"] = "mask_token"
    low: Width = 0.5
    high: Rate = 5.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class TisSequence:
    """Weigh an answer by min(product of its w, cap) (verl: 2)."""

    kind: Literal["tis_sequence"] = "tis_sequence"
    cap: Rate = 2.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class MaskSequence:
    """Weigh an answer by the product of its w up to `cap`, drop it above (TRL: 3)."""

    kind: Literal["mask_sequence"] = "mask_sequence"
    cap: Rate = 3.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class MaskGeometric:
    """Weigh tokens by w where their answer's geometric mean lies in [low, high], else drop it.

    The defaults are NeMo-RL's.
    """

    kind: Literal["mask_geometric"] = "mask_geometric"
    low: Width = 0.999
    high: Rate = 1.002


@dataclass(frozen=True, slots=True, config=CONFIG)
class Opsm:
    """Drop a worse-than-average answer once it grew unlikely: mean(old - now) > delta.

    Args:
        delta: nats per token (DeepSeek-V3.2, arXiv:2512.02556, publishes no value; our choice).
    """

    kind: Literal["opsm"] = "opsm"
    delta: Rate = 0.5


Correction = Annotated[
    Annotated[
        Bypass | TisToken | MaskToken | TisSequence | MaskSequence | MaskGeometric | Opsm,
        Field(discriminator="kind"),
    ],
    BeforeValidator(named),
]


@dataclass(frozen=True, slots=True, config=CONFIG)
class Kl:
    """Pull towards frozen weights.

    Args:
        beta: its weight; 0 = none, and no reference is kept (DeepSeekMath 0.04, verl 1e-3).
        form: `k1`, `k2`, `k3` or `k3_unbiased` (k3 times a ratio of value 1, whose gradient is that
            of KL(policy||reference)). None = `k3_unbiased` in the loss, `k1` in the reward.
        into: the loss of each token, or the reward.
        reference: the stage whose weights it pulls to; None = those that this stage starts from.
    """

    beta: Width = 0.0
    form: Literal["k1", "k2", "k3", "k3_unbiased"] | None = None
    into: Literal["loss", "reward"] = "loss"
    reference: str | None = None

    def __post_init__(self) -> None:
        """Forms that cannot do what they are asked for are refused."""
        if self.into == "loss" and self.form == "k1":
            raise ValueError("k1 in the loss has an expected gradient of 0; write k3_unbiased")
        if self.into == "reward" and self.form == "k3_unbiased":
            raise ValueError("a reward carries no gradient, so k3_unbiased is k3 there; write k3")

    @property
    def estimator(self) -> Literal["k1", "k2", "k3", "k3_unbiased"]:
        """The form that is taken."""
        return self.form or ("k3_unbiased" if self.into == "loss" else "k1")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Critic:
    """A value model: a copy of the policy's trunk with one output in place of the vocabulary.

    Args:
        learning_rate: of its AdamW; None = 10 times the stage's (1e-5 beside 1e-6 in verl).
        clip: half width of the value clip (slime 0.2; verl and OpenRLHF 0.5).
        epochs: passes over a round's answers.
        minibatches: optimizer steps per pass.
        warmup: rounds at the beginning in which only the critic learns.
    """

    learning_rate: Rate | None = None
    clip: Rate = 0.2
    epochs: Positive = 1
    minibatches: Positive = 1
    warmup: Count = 0
