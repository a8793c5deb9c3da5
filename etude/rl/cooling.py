"""A sampling temperature that falls while a stage trains (Kimi K2, arXiv:2507.20534, 3.2.3).

High at first, for exploration; low later, so that the policy trains on what it will answer.
"""

from collections.abc import Mapping
from math import cos, pi
from typing import Any

from etude.recipe.curricula import Cooling
from etude.rl.curriculum_pace import Pace, Seen


class Cool:
    """Falls from `hot` to the rule's end by the round alone."""

    def __init__(self, rule: Cooling, hot: float, rounds: int):
        self.rule, self.hot, self.rounds = rule, hot, rounds

    def temperature(self, round: int) -> float:
        """Return the temperature of a round."""
        done = between(round, self.rounds, self.rule.start, self.rule.end)
        if self.rule.shape == "cosine":
            done = (1 - cos(pi * done)) / 2
        return self.hot + done * (self.rule.to - self.hot)

    def pace(self, round: int) -> Pace:
        """Return the temperature."""
        return Pace(temperature=self.temperature(round))

    def observe(self, round: int, seen: Seen) -> str | None:
        """Say where the fall has ended."""
        after = self.temperature(round + 1)
        if after == self.rule.to != self.temperature(round):
            return f"temperature has come down to {after:g}"
        return None

    def state(self) -> dict[str, Any]:
        """Return nothing: the round says all."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""


def between(round: int, rounds: int, start: float, end: float) -> float:
    """Return how far a round is on the way between two parts of a stage, from 0 to 1.

    The first round is at 0 and the last at 1, so that both ends of a rule are played.
    """
    part = round / max(1, rounds - 1)
    return min(1.0, max(0.0, (part - start) / (end - start)))
