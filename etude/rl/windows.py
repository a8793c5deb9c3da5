"""Longer answers step by step (MiniMax-M1, arXiv:2506.13585, section 5: 40K to 80K tokens).

A window that opens too early is filled with repetition; one that opens too late cuts good answers.
"""

from collections.abc import Mapping
from typing import Any

from etude.recipe.curricula import Windows
from etude.rl.curriculum_pace import Pace, Seen


class OpenWindows:
    """Opens the next window when the perplexity stands still and answers fill this one."""

    def __init__(self, rule: Windows):
        self.rule, self.at = rule, 0
        self.seen: list[tuple[float, float]] = []  # perplexity and top length, in this window

    def pace(self, round: int) -> Pace:
        """Return the present window."""
        return Pace(max_tokens=self.rule.sizes[self.at])

    def observe(self, round: int, seen: Seen) -> str | None:
        """Move on once both conditions hold."""
        rule = self.rule
        if self.at + 1 == len(rule.sizes):
            return None
        self.seen = [*self.seen, (seen.perplexity, seen.top)][-rule.rounds :]
        if len(self.seen) < rule.rounds:
            return None
        half = rule.rounds // 2
        before = _mean([perplexity for perplexity, _ in self.seen[:half]])
        now = _mean([perplexity for perplexity, _ in self.seen[-half:]])
        top, size = _mean([top for _, top in self.seen[-half:]]), rule.sizes[self.at]
        change = abs(now - before) / before
        if change >= rule.change or top < rule.reach * size:
            return None
        self.at, self.seen = self.at + 1, []
        return (
            f"window {size} -> {rule.sizes[self.at]} tokens: perplexity {now:.3f} moved by"
            f" {change:.1%} over {rule.rounds} rounds, 99% of the answers within {top:.0f} tokens"
        )

    def state(self) -> dict[str, Any]:
        """Return the window and what was seen in it."""
        return {"at": self.at, "seen": [list(pair) for pair in self.seen]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.at, self.seen = state["at"], [tuple(pair) for pair in state["seen"]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
