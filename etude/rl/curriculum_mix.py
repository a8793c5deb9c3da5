"""Levels from a bell over measured pass rates (Nemotron 3 Nano, arXiv:2512.20848, section 3).

Its middle moves on a line from easy to hard. Each environment keeps its share of every batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from etude.objectives.reward import gaussian
from etude.recipe.curricula import PassRate
from etude.recipe.parts import Environment
from etude.rl.curriculum_pace import Pace, Play, Seen
from etude.rl.problems import draw
from etude.rl.sampler import seed_of
from etude.rl.temperature import slope

Rates = dict[str, dict[int, float]]  # pass rate by environment and level


class MixByPassRate:
    """Chooses levels by how often they are solved.

    Args:
        rule: where the bell is, and when rates are measured again.
        environments: of the stage.
        rounds: of the stage.
    """

    def __init__(self, rule: PassRate, environments: Sequence[Environment], rounds: int):
        self.rule, self.environments, self.rounds = rule, environments, rounds
        self.rates: Rates = {}
        self.rewards: list[float] = []
        self.due = True

    def mean(self, round: int) -> float:
        """Return the middle of the bell."""
        done = round / max(1, self.rounds - 1)
        return self.rule.first + done * (self.rule.last - self.rule.first)

    def profile(self, play: Play, round: int, seed: int) -> str | None:
        """Measure every level, if that is due; return what to say."""
        if not self.due:
            return None
        self.due, self.rewards = False, []
        for one in self.environments:
            rates = self.rates[one.name] = {}
            for level in sorted(one.levels):
                alone = replace(one, levels={level: 1.0})
                where = seed_of(seed, "pass rate", round, one.name, level)
                groups = play(draw([alone], self.rule.tries, where), where)
                rates[level] = sum(group[0].raw >= 1 for group in groups) / len(groups)
        told = " ".join(
            f"{name} {level}:{rate:.2f}"
            for name, rates in self.rates.items()
            for level, rate in rates.items()
        )
        return f"pass rates by level: {told}"

    def pace(self, round: int) -> Pace:
        """Return the levels' weights; before the first measurement, the recipe's own."""
        bell = {"mean": self.mean(round), "width": self.rule.width}
        levels = {name: gaussian(rates, **bell) for name, rates in self.rates.items()}
        return Pace(levels=levels or None, fixed=True)

    def observe(self, round: int, seen: Seen) -> str | None:
        """Ask for another measurement once the reward stands still."""
        self.rewards.append(seen.reward)
        window = self.rule.window
        if not window or len(self.rewards) < max(2, window):
            return None
        if slope(self.rewards[-window:]) >= self.rule.slope:
            return None
        self.due = True
        return f"reward stood still over {window} rounds: pass rates are measured again"

    def state(self) -> dict[str, Any]:
        """Return the rates, and what leads to the next measurement."""
        rates = [[name, level, r] for name, own in self.rates.items() for level, r in own.items()]
        return {"rates": rates, "rewards": list(self.rewards), "due": self.due}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.rates = {}
        for name, level, rate in state["rates"]:
            self.rates.setdefault(name, {})[level] = rate
        self.rewards, self.due = list(state["rewards"]), state["due"]
