"""Counting reasoning, and closing it when its budget is spent."""

from dataclasses import dataclass
from typing import Literal

from etude.engine.request import Kind, Thinking


@dataclass(slots=True)
class Thoughts:
    """Whether an answer is inside of reasoning, and how much of it there was.

    Args:
        rule: markers and budget; None is an answer without reasoning.
        budget: most tokens between the markers; None is no bound.
        inside: reasoning is open.
        spent: tokens of reasoning so far, forced ones apart.
        forced: closing ids that were forced so far; -1 before the first.
    """

    rule: Thinking | None
    budget: int | None = None
    inside: bool = False
    spent: int = 0
    forced: int = -1

    @property
    def next(self) -> int | None:
        """The id that must come now, if the budget leaves no choice."""
        if self.rule is None or not self.inside:
            return None
        if self.forced >= 0:
            return self.rule.close[self.forced]
        if self.budget is not None and self.spent >= self.budget:
            return self.rule.close[0]
        return None

    def advance(self, token: int) -> Kind:
        """Take in an id of the answer; the markers count as reasoning, but not as spent."""
        rule = self.rule
        if rule is None:
            return "content"
        if not self.inside:
            if token != rule.open:
                return "content"
            self.inside, self.forced = True, -1  # opened again, it goes on counting
            return "reasoning"
        if self.next is not None:
            self.forced = max(self.forced, 0) + 1
            self.inside = self.forced < len(rule.close)
        elif token == rule.close[-1]:
            self.inside = False
        else:
            self.spent += 1
        return "reasoning"

    def kind(self, token: int) -> Kind:
        """What an id would count as."""
        rule = self.rule
        return "reasoning" if rule and (self.inside or token == rule.open) else "content"

    def copy(self) -> "Thoughts":
        """The same, to look ahead with."""
        return Thoughts(self.rule, self.budget, self.inside, self.spent, self.forced)


def thoughts(rule: Thinking | None, room: int) -> Thoughts:
    """Start to count for an answer of at most `room` tokens."""
    if rule is None:
        return Thoughts(None)
    budget: int | Literal["auto"] | None = rule.budget
    if budget == "auto":
        budget = max(0, room - min(256, room // 4) - len(rule.close) - (not rule.inside))
    return Thoughts(rule, budget, rule.inside)
