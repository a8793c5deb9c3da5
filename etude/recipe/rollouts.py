"""How rollouts are sampled and recorded."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.numbers import CONFIG, Count, Positive, Rate, Share
from etude.recipe.objectives import added


@dataclass(frozen=True, slots=True, config=CONFIG)
class Record:
    """Which rollouts of a round are written to `rollouts/<stage>.jsonl`, for `etude rollouts`.

    Args:
        groups: problems of a round, those whose attempts differ in reward first; `all`.
        attempts: of each problem, the best and the worst; `all`.
        size_mb: before the file would become larger than this, in millions of bytes, recording
            ends, and a line says so.
    """

    groups: Count | Literal["all"] = 2
    attempts: Positive | Literal["all"] = 4
    size_mb: Rate = 64.0


@dataclass(frozen=True, slots=True, config=CONFIG)
class Dynamic:
    """Draw again for problems that teach nothing (DAPO, arXiv:2503.14476, section 3.2).

    A group whose rewards before shaping are all equal is dropped. One that a model will reward is
    kept, for it is chosen before that.

    Args:
        rounds: times problems are drawn for one batch at most, the first included.
    """

    rounds: Annotated[int, Field(ge=2)] = 4


@dataclass(frozen=True, slots=True, config=CONFIG)
class Repetition:
    """End an answer early once it repeats itself (MiniMax-M1, arXiv:2506.13585, section 3.2).

    Such an answer counts as one that was not finished.

    Args:
        tokens: so many in a row (the report: 3,000) ...
        probability: ... each more likely than this (the report: 0.99) end the answer.
        mask: leave the answer out of the loss; its reward still counts in the group's mean.
    """

    tokens: Positive = 3000
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.99
    mask: bool = False


@dataclass(frozen=True, slots=True, config=CONFIG)
class ThinkingBudget:
    """Reasoning that is cut short while it is sampled, so that answers get good without its end.

    The reports of Nemotron 3 cut 3 % (Nano) or 12 % (Super) of what they fine-tune on at random
    budgets, and say nothing of rollouts: all of it is our choice. The attempts at one problem have
    one budget, for they are compared with each other. Once it is spent, the closing tag is forced;
    it does not train.

    Args:
        share: of the problems asked for reasoning, those with a budget.
        least, most: tokens between the tags, drawn evenly; both count.
    """

    most: Count
    least: Count = 0
    share: Share = 1.0

    def __post_init__(self) -> None:
        """Budgets are a range."""
        if self.least > self.most:
            raise ValueError(f"least {self.least} is above most {self.most}")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Rollout:
    """How answers are sampled for one update.

    Args:
        prompts: problems per update.
        per_prompt: answers per problem; at least 2 where an objective compares them.
        max_tokens: longest answer of one turn.
        temperature: of sampling, and of the log-probabilities that train.
        updates: optimizer steps taken on one set of rollouts.
        tool_seconds: a tool that answers later than this ends its own rollout with reward 0.
        seconds: so long one reply's tools and reward may take together; later ones end their own
            attempt as failed.
        mode: `sync` samples each batch with the newest weights; `one_step` samples the next batch
            with the weights from before this update; `async` never stops sampling, see `max_age`.
        max_age: with `async`, an attempt whose oldest token was sampled more than so many optimizer
            steps ago is dropped, with its group.
        partial: tokens that an attempt may produce per round; one that needs more is kept, and goes
            on under the next weights (Kimi k1.5, arXiv:2501.12599, section 2.6.2). 0 = none is cut.
        older: tokens that were sampled by weights of an earlier round than an attempt's last ones
            are trained (`keep`) or not (`mask`).
        dynamic: draw until enough groups have signal; None = the batch shrinks instead.
        repetition: cut answers that repeat themselves; None = not.
        truncated: answers that hit a limit are trained (`keep`), or only count in the mean of their
            group (`mask`: DAPO section 3.4, overlong filtering).
        budget: reasoning of random length; None = as long as it wants.
        routes: train each token with the experts that the sampler chose for it.
        overlap: an attempt goes on while the tools of others still work. Which attempts decode side
            by side then depends on how fast the tools are, so a repeated run is equal up to
            rounding; otherwise all attempts wait for the tools of a turn, and it is equal in all
            bits. `async` overlaps always.
        record: what is written down for people.
    """

    prompts: Positive = 48
    per_prompt: Positive = 8
    max_tokens: Positive = 64
    temperature: Rate = 1.0
    updates: Positive = 1
    tool_seconds: Rate = 5.0
    seconds: Rate = added(60.0)
    mode: Literal["sync", "one_step", "async"] = added("sync")
    max_age: Positive = added(1)
    partial: Count = added(0)
    older: Literal["keep", "mask"] = added("keep")
    dynamic: Dynamic | None = added()
    repetition: Repetition | None = added()
    truncated: Literal["keep", "mask"] = added("keep")
    budget: ThinkingBudget | None = added()
    routes: bool = added(False)
    overlap: bool = added(False)
    record: Record = added(default_factory=Record)

    def __post_init__(self) -> None:
        """Modes that contradict each other are refused."""
        if self.partial and self.mode != "sync":
            raise ValueError(f"partial rollouts need mode sync, not {self.mode}")
        if self.partial and self.dynamic:
            raise ValueError("partial rollouts and dynamic sampling exclude each other")
        if self.partial and self.budget:
            raise ValueError("partial rollouts and a budget of reasoning exclude each other")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Difficulty:
    """Which problems a stage trains on, by measured pass@k (GLM-4.5 section 3.2).

    Args:
        keep: `moderate` = solved sometimes (0 < pass rate < 1 over `k` samples), `hard` = pass@k =
            0 and pass@`many` > 0,
            `all` = no filter.
        k, many: the report's 8 and 512; a miniature uses fewer.
        pool: problems measured.
        least: problems the filter must leave; fewer falls back to the next easier rule, and says
            so.
    """

    keep: Literal["all", "moderate", "hard"] = "all"
    k: Positive = 8
    many: Positive = 64
    pool: Positive = 256
    least: Positive = 16


@dataclass(frozen=True, slots=True, config=CONFIG)
class Temperature:
    """Raise the sampling temperature once the reward stands still (GLM-4.5 section 3.2).

    Args:
        window: steps the slope is taken over.
        slope: reward per step below which the reward counts as stable (our choice).
        grid: temperatures tried on held-out problems.
        tolerance: the largest temperature whose accuracy is within this of the best is taken (the
            report's 1%, read as
            an absolute difference).
        problems: held-out problems per temperature.
    """

    window: Positive = 20
    slope: float = 0.002
    grid: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)
    tolerance: float = 0.01
    problems: Positive = 64
