"""Reward terms of an RL stage: what is added to the environment's own reward, or stands for it.

They are worked out in their order. `for` names the environments that a term applies to; none = all.
A judge or a reward model replaces the environment's reward where it applies, so that one stage
mixes rule-based rewards and model-based ones (MiniMax-M1, arXiv:2506.13585, section 4; Qwen3-Omni,
arXiv:2509.17765). The formulas are in `etude.objectives.reward`.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.numbers import CONFIG, Count, Positive, Rate, Share

Weight = Annotated[float, Field(ge=0)]
Criterion = Literal["right", "short", "valid"]


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Term:
    """What every term has.

    Args:
        weight: by which its value is multiplied.
        only: environments that it applies to, by name; written `for` in YAML. None = all.
    """

    weight: Weight = 1.0
    only: tuple[str, ...] = Field(default=(), validation_alias="for", serialization_alias="for")


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Overlong(Term):
    """A penalty that grows over the last tokens before the limit (DAPO, arXiv:2503.14476).

    Args:
        length: longest answer; 0 = as long as a turn may be at the moment.
        cache: tokens before it over which the penalty goes from 0 to -1 (DAPO: 4,096 of 20,480).
    """

    kind: Literal["overlong"] = "overlong"
    length: Count = 0
    cache: Positive


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Budget(Term):
    """A penalty of `weight` for an answer above its task's budget (Kimi K2, arXiv:2507.20534).

    One term for each kind of task, told apart by `for`.

    Args:
        tokens: of the policy in a whole attempt. The report also cuts such answers: set
            `rollout.max_tokens` to the largest budget for that.
    """

    kind: Literal["budget"] = "budget"
    tokens: Positive


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class LengthAware(Term):
    """Group relative length control: short answers are better than their group (Nemotron 3).

    The values that are added keep the group's mean; the bonuses do not.

    Args:
        think, answer: coefficients of the lengths of reasoning and answer (Nano 0.5 and 0.5; the
            recipe of Super 0.3 and 0.35).
        bonus_think, bonus_answer: for the shortest of a group, if it is good (0.5 and 0.5).
        quantile: of the group's rewards which a bonus needs (0.8).
    """

    kind: Literal["length_aware"] = "length_aware"
    think: Weight = 0.5
    answer: Weight = 0.5
    bonus_think: Weight = 0.5
    bonus_answer: Weight = 0.5
    quantile: Share = 0.8


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Repetition(Term):
    """A penalty: the share of runs of `tokens` that occurred before (GLM-4.5, section 3.4).

    The report names the fault and not the formula: our choice.

    Args:
        tokens: length of a run.
        allowed: share that costs nothing.
    """

    kind: Literal["repetition"] = "repetition"
    tokens: Annotated[int, Field(ge=2)] = 4
    allowed: Share = 0.2


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Format(Term):
    """A penalty of `weight` where a turn broke the chat format (GLM-4.5, section 3.4)."""

    kind: Literal["format"] = "format"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class LanguageMixing(Term):
    """A penalty of `weight` where letters are of a script that the question has not.

    GLM-4.5, section 3.4, names the fault and not the formula: our choice.

    Args:
        allowed: share of letters that costs nothing.
        scripts: allowed beside those of the question, as Unicode names them.
    """

    kind: Literal["language_mixing"] = "language_mixing"
    allowed: Share = 0.05
    scripts: tuple[str, ...] = ("LATIN",)


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Toggle(Term):
    """Phases that ask for brevity, and phases that do not (Kimi K2.5, arXiv:2602.02276).

    In a budget phase a reward is lost if the problem is solved well and the answer is longer than
    its budget: a quantile of the lengths of right answers, measured once. `weight` does not count.

    Args:
        every: rounds of a phase (m of the report, not published); the first asks for brevity.
        least: share of right answers from which on brevity is asked for (lambda, not published).
        quantile: of the lengths of right answers (rho, not published).
        by: each `problem` has its own budget, as in the report, measured in the first round in
            which it has a right answer; or all of a `level`, where problems seldom come back.
    """

    kind: Literal["toggle"] = "toggle"
    every: Positive = 10
    least: Share = 0.6
    quantile: Share = 0.5
    by: Literal["problem", "level"] = "problem"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Parl(Term):
    """l1 r_parallel + l2 r_finish for an agent that hands work to others (Kimi K2.5, PARL).

    The environment says in its `info` how many sub-agents were `launched`, how many tasks were
    `assigned`, and how many of these `finished`.

    Args:
        parallel, finish: l1 and l2 at the start (0.1 is what an earlier note of the authors had).
        target: sub-agents that are worth the whole of l1 (our choice).
        until: share of the stage's rounds over which both fall to 0, on a line (not published).
    """

    kind: Literal["parl"] = "parl"
    parallel: Weight = 0.1
    finish: Weight = 0.1
    target: Positive = 4
    until: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Function(Term):
    """A function of yours, `module:name`, that takes an attempt (a dict) and returns a number.

    It runs in a process of its own. If it raises, is late, or returns no finite number, the attempt
    has failed, and is counted.

    Args:
        call: `module:name`, from a module that can be imported where the run was started.
        seconds: so long it may take for one attempt.
    """

    kind: Literal["function"] = "function"
    call: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    seconds: Rate = 5.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class LengthBias:
    """When a judge is said to like length, and what is done (MiniMax-M1, section 4.2).

    The report watches during training whether answers grow while nothing gets better; the
    thresholds are our choice.

    Args:
        window: rounds that are looked at.
        correlation: of length and judged reward in them, above which ...
        growth: ... and of the mean length, from the window's first third to its last, above which
            the judge is suspected, unless the true accuracy rose.
        act: `say` it, or `recalibrate`: from then on, the part of a judged reward that a line
            through the lengths of the round explains is taken off.
    """

    window: Annotated[int, Field(ge=3)] = 12
    correlation: Share = 0.3
    growth: Rate = 0.2
    act: Literal["say", "recalibrate"] = "say"


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Judge(Term):
    """A model that reads answers and says which is better.

    Before it rewards it is measured on held-out pairs whose truth is known, and must be good.

    Args:
        by: `self`, the policy as it trains (self-critique, Kimi K2 section 3.2.2), or the stage
            whose model judges.
        mode: `circle` compares each answer with the next of its group (Nemotron 3);
            `reference` compares it with the task's own answer, -1, 0 or 1; `grade` gives it 1 to 5
            against that (both MiniMax-M1, section 4.2).
        criterion: what is better: the `right` answer, the `short` one, or the one that is `valid`
            JSON.
        verdict: of a comparison, a `letter`, or the `scores` of both answers and a rank, as JSON
            (Nemotron 3); a model learns these on levels 0 to 2 and on level 4 of the task `judge`.
        swap: ask in both orders; where the two verdicts differ, neither is better.
        least: share of held-out pairs that it must decide rightly.
        pairs: how many it is measured on.
        max_tokens: of a verdict.
        refresh: weight of a supervised loss by which the policy, as its own judge, goes on learning
            to judge: from pairs of its own attempts at problems that rules verify. 0 = not.
        lessons: pairs of each round that it learns from at most.
        bias: how its liking for length is watched.
    """

    kind: Literal["judge"] = "judge"
    by: str = "self"
    mode: Literal["circle", "reference", "grade"] = "circle"
    criterion: Criterion = "right"
    verdict: Literal["letter", "scores"] = "letter"
    swap: bool = True
    least: Share = 0.8
    pairs: Positive = 200
    max_tokens: Positive = 48
    refresh: Weight = 0.0
    lessons: Positive = 16
    bias: LengthBias = Field(default_factory=LengthBias)

    def __post_init__(self) -> None:
        """Grades are of being right."""
        graded = self.mode == "grade" or self.verdict == "scores"
        if graded and self.criterion != "right":
            raise ValueError("grades and scores know the criterion right only")
        if self.refresh and (self.by != "self" or self.criterion != "right" or graded):
            raise ValueError("refresh needs by: self, criterion: right and a verdict by letter")


@dataclass(frozen=True, slots=True, config=CONFIG, kw_only=True)
class Scalar(Term):
    """A reward model's number (a stage `reward_model`, trained on pairs).

    Args:
        by: the stage.
        least: share of its held-out pairs that it must have ordered rightly.
        bias: how its liking for length is watched.
    """

    kind: Literal["reward_model"] = "reward_model"
    by: str
    least: Share = 0.8
    bias: LengthBias = Field(default_factory=LengthBias)


Reward = Annotated[
    Overlong
    | Budget
    | LengthAware
    | Repetition
    | Format
    | LanguageMixing
    | Toggle
    | Parl
    | Function
    | Judge
    | Scalar,
    Field(discriminator="kind"),
]
