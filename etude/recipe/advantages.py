"""Estimators of advantage, by `kind`: what an answer or token is worth beside what was expected.

Written as a name (`advantage: group`) or with fields (`advantage: {kind: group, eps: 1e-6}`). The
formulas are in `etude.objectives.advantage` and `etude.objectives.value`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from etude.recipe.numbers import CONFIG, Rate, Share


@dataclass(frozen=True, slots=True, config=CONFIG)
class Group:
    """(R - mean) / (std + eps) over a problem's answers (GRPO, arXiv:2402.03300, section 4.1.2).

    Args:
        unbiased: standard deviation with n - 1 below (TRL, verl).
        eps: added to it (TRL 1e-4, verl 1e-6).
    """

    kind: Literal["group"] = "group"
    unbiased: bool = True
    eps: Rate = 1e-4


@dataclass(frozen=True, slots=True, config=CONFIG)
class GroupCentre:
    """R - mean over a problem's answers (Dr. GRPO, arXiv:2503.20783; Kimi K2, arXiv:2507.20534)."""

    kind: Literal["group_centre"] = "group_centre"


@dataclass(frozen=True, slots=True, config=CONFIG)
class GroupMeanBatchStd:
    """(R - mean over the problem's answers) / (std over all answers of the round + eps).

    Source: the normalisation that Lite PPO keeps, arXiv:2508.08221.
    """

    kind: Literal["group_mean_batch_std"] = "group_mean_batch_std"
    unbiased: bool = True
    eps: Rate = 1e-4


@dataclass(frozen=True, slots=True, config=CONFIG)
class LeaveOneOut:
    """R - mean of the problem's other answers (RLOO, arXiv:2402.14740, section 3.3).

    Args:
        std: divide by the group's standard deviation too (Nemotron 3 normalises rewards).
        unbiased, eps: of that deviation.
    """

    kind: Literal["leave_one_out"] = "leave_one_out"
    std: bool = False
    unbiased: bool = True
    eps: Rate = 1e-4


@dataclass(frozen=True, slots=True, config=CONFIG)
class Returns:
    """Returns-to-go of a token's rewards, whitened over all tokens (arXiv:2501.03262).

    Args:
        gamma: discount per token.
        unbiased: of the standard deviation.
    """

    kind: Literal["reinforce_pp"] = "reinforce_pp"
    gamma: Share = 1.0
    unbiased: bool = True


@dataclass(frozen=True, slots=True, config=CONFIG)
class ReturnsBaseline:
    """R - mean over the problem's answers, then whitened over all tokens of the round.

    Source: REINFORCE++ with baseline, arXiv:2501.03262; ProRL v2.
    """

    kind: Literal["reinforce_pp_baseline"] = "reinforce_pp_baseline"
    unbiased: bool = True


@dataclass(frozen=True, slots=True, config=CONFIG)
class Gae:
    """Generalised advantage estimation over a critic's values (arXiv:1506.02438).

    Args:
        gamma, lam: discount, and how far one looks ahead; 1 and 1 are usual for language models.
        whiten: to mean 0 and deviation 1 over all tokens of the round.
        bootstrap: an answer that was cut is worth the critic's value where it stopped, not 0.
    """

    kind: Literal["gae"] = "gae"
    gamma: Share = 1.0
    lam: Share = 1.0
    whiten: bool = True
    bootstrap: bool = False


@dataclass(frozen=True, slots=True, config=CONFIG)
class Decoupled:
    """Normalise each named part of the reward in its group, weigh, add, whiten (GDPO).

    Args:
        weights: weight by name of the reward part; a part that is not named weighs 1.
        unbiased, eps: of each part's standard deviation.

    Source: GDPO, arXiv:2601.05242.
    """

    kind: Literal["decoupled"] = "decoupled"
    weights: dict[str, float] = Field(default_factory=dict)
    unbiased: bool = True
    eps: Rate = 1e-4


def named(value: Any) -> Any:
    """Read a kind that is only named as one with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


Advantage = Annotated[
    Annotated[
        Group
        | GroupCentre
        | GroupMeanBatchStd
        | LeaveOneOut
        | Returns
        | ReturnsBaseline
        | Gae
        | Decoupled,
        Field(discriminator="kind"),
    ],
    BeforeValidator(named),
]
