"""Has a judge come to like length? Watched while it rewards (MiniMax-M1, section 4.2).

A policy finds out what a judge likes. If that is length, answers grow, the judged reward goes with
the length, and the truth does not get better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.objectives.reward import correlation
from etude.recipe.rewards import LengthBias


@dataclass(frozen=True, slots=True)
class Found:
    """One round of a judge.

    Args:
        correlation: of length and judged reward.
        length: mean tokens.
        truth: mean of the true reward.
    """

    correlation: float
    length: float
    truth: float


class Watch:
    """Looks at a window of rounds.

    Attributes:
        alarms: how often it was sure.
        correcting: whether judged rewards are recalibrated from now on.
    """

    def __init__(self, rule: LengthBias):
        self.rule, self.alarms, self.correcting = rule, 0, False
        self.rounds: list[Found] = []

    def look(self, rewards: Sequence[float], lengths: Sequence[int], truth: float) -> str | None:
        """Take in a round; return what to say where the judge is suspected."""
        mean = sum(lengths) / len(lengths)
        found = Found(correlation(lengths, rewards), mean, truth)
        self.rounds = [*self.rounds, found][-self.rule.window :]
        if len(self.rounds) < self.rule.window:
            return None
        third = self.rule.window // 3
        first, last = self.rounds[:third], self.rounds[-third:]
        tied = _mean([one.correlation for one in self.rounds])
        before, now = _mean([one.length for one in first]), _mean([one.length for one in last])
        better = _mean([one.truth for one in last]) > _mean([one.truth for one in first])
        growth = now / before - 1 if before else 0.0
        if tied <= self.rule.correlation or growth < self.rule.growth or better:
            return None
        self.rounds, self.alarms = [], self.alarms + 1
        self.correcting = self.rule.act == "recalibrate"
        told = (
            f"the judge seems to like length: correlation {tied:.2f}, answers {growth:.0%} longer"
            f" over {self.rule.window} rounds, and no more of them right"
        )
        return told + ("; its rewards are recalibrated by length" if self.correcting else "")

    def state(self) -> dict[str, Any]:
        """Return what it has seen and decided."""
        rounds = [[one.correlation, one.length, one.truth] for one in self.rounds]
        return {"rounds": rounds, "alarms": self.alarms, "correcting": self.correcting}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.rounds = [Found(*row) for row in state["rounds"]]
        self.alarms, self.correcting = state["alarms"], state["correcting"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
