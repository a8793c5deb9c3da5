"""How an RL stage changes while it trains: length, mixture, temperature, difficulty.

Each rule is off where it is None. All of them only look at rounds that are over, so a resumed run
makes the same moves.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.numbers import CONFIG, Positive, Rate, Share


@dataclass(frozen=True, slots=True, config=CONFIG)
class Windows:
    """Longest answers that grow in steps (MiniMax-M1, arXiv:2506.13585, section 5: 40K to 80K).

    The next window opens once the perplexity of what is sampled has converged and the longest
    answers come near the window. The report gives no thresholds: our choice.

    Args:
        sizes: windows in tokens of a turn, growing; they stand for `rollout.max_tokens`.
        rounds: two halves of so many rounds are compared.
        change: relative change of the perplexity's mean between the halves, at most.
        reach: the 99th percentile of the lengths is at least this share of the window, over the
            later half.
    """

    sizes: Annotated[tuple[Positive, ...], Field(min_length=2)]
    rounds: Annotated[int, Field(ge=2)] = 50
    change: Rate = 0.01
    reach: Share = 0.95

    def __post_init__(self) -> None:
        """Windows grow."""
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("sizes must grow")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Ramp:
    """General tasks that are mixed in bit by bit (MiniMax-M1, section 4.3).

    The report starts with rule-verified tasks and says no numbers: our choice.

    Args:
        names: the environments whose share grows from 0.
        to: their share at the end.
        start, end: the share grows on a line between these parts of the stage's rounds.
    """

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    to: Share = 0.3
    start: Share = 1 / 3
    end: Share = 2 / 3

    def __post_init__(self) -> None:
        """A ramp has a length."""
        if self.start >= self.end:
            raise ValueError("start must be before end")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Cooling:
    """A sampling temperature that falls from `rollout.temperature` (Kimi K2, section 3.2.3).

    The report gives neither values nor shape.

    Args:
        to: temperature at the end.
        start, end: it falls between these parts of the stage's rounds.
        shape: of the fall, `linear` or `cosine`.
    """

    to: Rate
    start: Share = 0.0
    end: Share = 1.0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        """A fall has a length."""
        if self.start >= self.end:
            raise ValueError("start must be before end")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Levels:
    """Each environment's own level, up when it is easy and down when it is hard.

    It starts at the lowest of the environment's `levels` and stays among them. The bounds are our
    choice (MiniMax-M1 raises the difficulty of its logic tasks late in training, and says no more).

    Args:
        up, down: share of solved attempts above which the level rises, and below which it falls.
        episodes: attempts at the present level, from its last move on, that the share is taken of;
            a move waits for as many.
        names: environments it applies to; none = all.
    """

    up: Share = 0.8
    down: Share = 0.2
    episodes: Positive = 64
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Easy and hard exclude each other."""
        if self.down >= self.up:
            raise ValueError("down must be below up")


@dataclass(frozen=True, slots=True, config=CONFIG)
class PassRate:
    """Levels drawn from a bell over their pass rates, whose middle moves from easy to hard.

    Environments keep fixed shares of each batch. Pass rates are measured before the first round and
    again when progress stops; levels that are always solved are left out (Nemotron 3 Nano,
    arXiv:2512.20848, section 3; Super: arXiv:2604.12374).

    Args:
        first, last: middle of the bell at the stage's beginning and end (not published).
        width: its standard deviation (not published).
        tries: attempts at each level that measure it.
        window: rounds over which the mean reward must rise by more than `slope` a round, else it is
            measured again; 0 = never again.
        slope: see there.
    """

    first: Share = 0.8
    last: Share = 0.2
    width: Rate = 0.15
    tries: Positive = 64
    window: Annotated[int, Field(ge=0)] = 20
    slope: float = 0.001


@dataclass(frozen=True, slots=True, config=CONFIG)
class Curriculum:
    """The rules of a stage, each on its own.

    Args:
        windows: longest answers.
        ramp: shares of environments.
        cooling: temperature.
        levels: levels by success.
        pass_rate: levels by measured pass rates; excludes `levels`.
    """

    windows: Windows | None = None
    ramp: Ramp | None = None
    cooling: Cooling | None = None
    levels: Levels | None = None
    pass_rate: PassRate | None = None

    def __post_init__(self) -> None:
        """One rule chooses levels."""
        if self.levels and self.pass_rate:
            raise ValueError("levels and pass_rate both choose levels: keep one of them")
