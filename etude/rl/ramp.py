"""General tasks beside rule-verified ones, more and more (MiniMax-M1, arXiv:2506.13585, 4.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from etude.errors import EtudeError, closest
from etude.recipe.curricula import Ramp
from etude.recipe.parts import Environment
from etude.rl.cooling import between
from etude.rl.curriculum_pace import Pace, Seen


class RampShares:
    """Gives some environments a share that grows on a line; the others divide the rest.

    Args:
        rule: whose share grows, and when.
        environments: of the stage; inside both parts the recipe's weights count.
        rounds: of the stage.

    Raises:
        EtudeError: an environment that the stage has not, or none is left for the beginning.
    """

    def __init__(self, rule: Ramp, environments: Sequence[Environment], rounds: int):
        self.rule, self.rounds = rule, rounds
        self.weights = {one.name: one.weight for one in environments}
        for name in rule.names:
            if name not in self.weights:
                where, known = "curriculum.ramp.names", ", ".join(self.weights)
                raise EtudeError(
                    where, f"no environment {name}", known, closest(name, self.weights)
                )
        if set(rule.names) == set(self.weights):
            raise EtudeError("curriculum.ramp.names", "all environments", "one that they join")

    def share(self, round: int) -> float:
        """Return what the growing part has in a round."""
        rule = self.rule
        return rule.to * between(round, self.rounds, rule.start, rule.end)

    def pace(self, round: int) -> Pace:
        """Return every environment's share."""
        share, own = self.share(round), set(self.rule.names)
        grown = sum(self.weights[name] for name in own)
        rest = sum(self.weights.values()) - grown
        return Pace(
            weights={
                name: weight * (share / grown if name in own else (1 - share) / rest)
                for name, weight in self.weights.items()
            }
        )

    def observe(self, round: int, seen: Seen) -> str | None:
        """Say when the ramp begins and when it has ended; time alone moves it."""
        before, after = self.share(round), self.share(round + 1)
        names = ", ".join(self.rule.names)
        if before == 0 < after:
            return f"{names}: from round {round + 1} on a growing share of the problems"
        if before < after == self.rule.to:
            return f"{names}: {after:.0%} of the problems from now on"
        return None

    def state(self) -> dict[str, Any]:
        """Return nothing: the round says all."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""
