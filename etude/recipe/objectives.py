"""Policy objectives of an RL stage, one class per `kind`; each names its paper and its defaults.

A kind says how a token's loss is made; four parts that all kinds share say the rest: `advantage`
(what a token is worth), `aggregate` (how tokens are averaged), `correction` (what is done about a
sampler whose probabilities differ from the trainer's) and `kl` (the pull to a frozen reference).
The formulas are in `etude.objectives`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from etude.recipe.advantages import Advantage as Advantage
from etude.recipe.advantages import Decoupled as Decoupled
from etude.recipe.advantages import Gae as Gae
from etude.recipe.advantages import Group as Group
from etude.recipe.advantages import GroupCentre as GroupCentre
from etude.recipe.advantages import GroupMeanBatchStd as GroupMeanBatchStd
from etude.recipe.advantages import LeaveOneOut as LeaveOneOut
from etude.recipe.advantages import Returns as Returns
from etude.recipe.advantages import ReturnsBaseline as ReturnsBaseline
from etude.recipe.corrections import Bypass as Bypass
from etude.recipe.corrections import Correction as Correction
from etude.recipe.corrections import Critic as Critic
from etude.recipe.corrections import Kl as Kl
from etude.recipe.corrections import MaskGeometric as MaskGeometric
from etude.recipe.corrections import MaskSequence as MaskSequence
from etude.recipe.corrections import MaskToken as MaskToken
from etude.recipe.corrections import Opsm as Opsm
from etude.recipe.corrections import TisSequence as TisSequence
from etude.recipe.corrections import TisToken as TisToken
from etude.recipe.corrections import Width
from etude.recipe.numbers import CONFIG, Positive, Rate
from etude.recipe.numbers import added as added

Aggregate = Literal[
    "token", "sequence", "sequence_sum", "constant", "batch_token_prompt", "token_and_sequence"
]
NO_CRITIC = "advantage gae needs a critic, which only kind ppo has"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Policy:
    """What all kinds share.

    Args:
        aggregate: how tokens are averaged (`objectives.aggregate`).
        constant: tokens that every answer counts as under `constant`; None = the stage's longest
            answer.
        correction: for a sampler that disagrees or is behind; None = none.
        kl: pull towards the starting weights.
        entropy: weight of an entropy bonus.
    """

    aggregate: Aggregate = "token"
    constant: Positive | None = None
    correction: Correction | None = None
    kl: Kl = Field(default_factory=Kl)
    entropy: Width = 0.0


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Credited(Policy):
    """What all kinds but `grpo` share.

    Args:
        advantage: how rewards become advantages.
    """

    advantage: Advantage = Field(default_factory=Group)

    def __post_init__(self) -> None:
        """Only a kind with a critic has values to estimate from."""
        if isinstance(self.advantage, Gae) and not hasattr(self, "critic"):
            raise ValueError(NO_CRITIC)

    @property
    def estimator(self) -> Any:
        """The advantage that is taken."""
        return self.advantage


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Grpo(Policy):
    """Group-relative clipped policy loss without a KL term (GLM-4.5 section 3.2).

    The report publishes no clip values; the defaults are our choice. DeepSeekMath
    (arXiv:2402.03300): 0.2 and 0.2, `sequence`, `kl: {beta: 0.04, form: k3}`.

    Args:
        clip_low, clip_high: width of the ratio clip below and above 1.
        dual: bound on the ratio where the advantage is negative (verl: 3); None = none.
        std: divide advantages by the group's standard deviation (our default; the agentic objective
            does not).
        eps: added to that deviation (our choice, as in verl and slime; TRL adds 1e-4).
        advantage: another estimator than the one that `std` and `eps` describe.
    """

    kind: Literal["grpo"] = "grpo"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.28
    std: bool = True
    eps: Rate = 1e-6
    dual: Annotated[float, Field(gt=1)] | None = added()
    advantage: Advantage | None = added()
    constant: Positive | None = added()
    correction: Correction | None = added()
    kl: Kl = added(default_factory=Kl)
    entropy: Width = added(0.0)

    def __post_init__(self) -> None:
        """Only a kind with a critic has values to estimate from."""
        if isinstance(self.advantage, Gae):
            raise ValueError(NO_CRITIC)

    @property
    def estimator(self) -> Any:
        """The group's, centred or normalised, where no other is named."""
        return self.advantage or (Group(eps=self.eps) if self.std else GroupCentre())


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Ppo(Credited):
    """Clipped ratio with a critic (PPO, arXiv:1707.06347, equation 7 and section 6.1).

    Args:
        clip_low, clip_high: width of the ratio clip below and above 1.
        dual: bound on the ratio where the advantage is negative (arXiv:1912.09729; verl: 3).
        critic: the value model.
    """

    kind: Literal["ppo"] = "ppo"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.2
    dual: Annotated[float, Field(gt=1)] | None = None
    advantage: Advantage = Field(default_factory=Gae)
    critic: Critic = Field(default_factory=Critic)


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class ReinforcePp(Credited):
    """REINFORCE++: no critic and no groups; clipped, whitened (arXiv:2501.03262, algorithm 1).

    The paper adds `kl: {beta: 0.01, into: reward}`; here none is kept unless asked for.
    """

    kind: Literal["reinforce_pp"] = "reinforce_pp"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.2
    advantage: Advantage = Field(default_factory=Returns)


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Rloo(Credited):
    """REINFORCE against the problem's other answers (arXiv:2402.14740, section 3.3).

    The clip changes nothing in the first update on a round (ratio 1); TRL has it for later ones.
    """

    kind: Literal["rloo"] = "rloo"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.2
    advantage: Advantage = Field(default_factory=LeaveOneOut)
    aggregate: Aggregate = "sequence_sum"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class DrGrpo(Credited):
    """GRPO without its two biases: no deviation, one constant length (arXiv:2503.20783)."""

    kind: Literal["dr_grpo"] = "dr_grpo"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.2
    advantage: Advantage = Field(default_factory=GroupCentre)
    aggregate: Aggregate = "constant"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Dapo(Credited):
    """Clip-higher over a token mean (arXiv:2503.14476, equation 8 and section 3).

    Dynamic sampling and the overlong penalty are `rollout.dynamic` and `rewards`.
    """

    kind: Literal["dapo"] = "dapo"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.28


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Gspo(Credited):
    """Clip a whole answer by the geometric mean of its ratios (arXiv:2507.18071, equation 5).

    The mean stays near 1, so the widths are the paper's 3e-4 and 4e-4 (its section 5.1). A loss is
    that of the whole answer, which other aggregates would count by length.
    """

    kind: Literal["gspo"] = "gspo"
    clip_low: Rate = 3e-4
    clip_high: Rate = 4e-4
    aggregate: Literal["sequence"] = "sequence"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class GspoToken(Credited):
    """GSPO whose advantages may differ between tokens (arXiv:2507.18071, section 4.3)."""

    kind: Literal["gspo_token"] = "gspo_token"
    clip_low: Rate = 3e-4
    clip_high: Rate = 4e-4
    aggregate: Literal["sequence"] = "sequence"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Cispo(Credited):
    """Clip the weight, never the token (MiniMax-M1, arXiv:2506.13585, section 3.1).

    Args:
        weight_min, weight_max: absolute bounds of the ratio. The paper leaves the lower side open
            and publishes no upper value; 5 is what public code is close to.
        drop_low, drop_high: the unified mask: a token also stops counting where its advantage is
            negative and the ratio below 1 - drop_low, or positive and above 1 + drop_high. None =
            never.
    """

    kind: Literal["cispo"] = "cispo"
    weight_min: Width = 0.0
    weight_max: Rate = 5.0
    drop_low: Rate | None = None
    drop_high: Rate | None = None

    def __post_init__(self) -> None:
        """Bounds lie around 1."""
        Credited.__post_init__(self)
        if not self.weight_min <= 1 <= self.weight_max:
            bounds = f"{self.weight_min:g} and {self.weight_max:g}"
            raise ValueError(f"weight_min and weight_max bound the ratio itself, not {bounds}")


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class MirrorDescent(Credited):
    """Regress an answer's advantage on its log-ratio (Kimi K2, arXiv:2507.20534, section 3.2.3).

    Args:
        tau: weight of the log-ratio. Not published; 0.01 is a public re-implementation's.
        scale: `policy_gradient` divides by 2 tau, so that learning rates are those of the other
            kinds; `squared` is the report's form.
        by_length: divide each answer's loss by its tokens (that re-implementation).
    """

    kind: Literal["mirror_descent"] = "mirror_descent"
    tau: Rate = 0.01
    scale: Literal["policy_gradient", "squared"] = "policy_gradient"
    by_length: bool = False
    advantage: Advantage = Field(default_factory=GroupCentre)
    aggregate: Literal["sequence"] = "sequence"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class MaskedLogRatio(Credited):
    """A token counts inside a window of ratios, and is always pulled back (Kimi K2.5).

    Args:
        ratio_min, ratio_max: the window, in ratios (the report's alpha and beta are their logs).
            Not published; 0.8 and 1.28 are our choice.
        tau: weight of the squared log-ratio. Not published; 1e-3 is prime-rl's.
    """

    kind: Literal["masked_log_ratio"] = "masked_log_ratio"
    ratio_min: Rate = 0.8
    ratio_max: Rate = 1.28
    tau: Width = 1e-3
    advantage: Advantage = Field(default_factory=GroupCentre)


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class MaskedImportance(Credited):
    """GRPO with masked importance sampling and a leave-one-out baseline (Nemotron 3 Nano).

    The report gives neither the mask's bounds nor what rewards are divided by; 0.5 and 2, and the
    group's deviation, are our choice.
    """

    kind: Literal["masked_importance"] = "masked_importance"
    clip_low: Rate = 0.2
    clip_high: Rate = 0.28
    advantage: Advantage = Field(default_factory=lambda: LeaveOneOut(std=True))
    correction: Correction | None = Field(default_factory=lambda: MaskToken(high=2.0))


Clipped = Grpo | Ppo | ReinforcePp | Rloo | DrGrpo | Dapo | MaskedImportance
Sequenced = Gspo | GspoToken
Kind = Clipped | Sequenced | Cispo | MirrorDescent | MaskedLogRatio


def _default_kind(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "grpo", **value} if isinstance(value, dict) else value


Objective = Annotated[Annotated[Kind, Field(discriminator="kind")], BeforeValidator(_default_kind)]
GROUPLESS = (Returns, Gae)


def needs_group(spec: Kind) -> str:
    """Return the name of the objective's estimator where it compares a problem's answers, or ""."""
    estimator = spec.estimator
    return "" if isinstance(estimator, GROUPLESS) else estimator.kind
