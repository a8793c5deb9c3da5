"""A stage's curriculum: its rules together, behind the interface that the rollouts ask."""

from collections.abc import Mapping
from typing import Any

from etude.errors import EtudeError
from etude.recipe.stages import Rl
from etude.rl.cooling import Cool
from etude.rl.curriculum_mix import MixByPassRate
from etude.rl.curriculum_pace import Pace, Play, Rule, Seen
from etude.rl.levels import AdaptLevels
from etude.rl.ramp import RampShares
from etude.rl.windows import OpenWindows


class Curriculum:
    """All rules of a stage. Without a rule every pace is empty, and nothing is observed.

    Args:
        spec: the stage.

    Raises:
        EtudeError: rules that contradict the stage.
    """

    def __init__(self, spec: Rl):
        asked, environments = spec.curriculum, spec.environments
        _check(spec)
        self.rules: dict[str, Rule] = {}
        if asked.windows:
            self.rules["windows"] = OpenWindows(asked.windows)
        if asked.ramp:
            self.rules["ramp"] = RampShares(asked.ramp, environments, spec.steps)
        if asked.cooling:
            self.rules["cooling"] = Cool(asked.cooling, spec.rollout.temperature, spec.steps)
        if asked.levels:
            self.rules["levels"] = AdaptLevels(asked.levels, environments)
        if asked.pass_rate:
            self.rules["pass_rate"] = MixByPassRate(asked.pass_rate, environments, spec.steps)

    def profile(self, play: Play, round: int, seed: int) -> str | None:
        """Measure pass rates where a rule asks for them; return what to say.

        Args:
            play: lets the policy try each problem once.
            round: the one that comes.
            seed: of the problems.
        """
        rule = self.rules.get("pass_rate")
        return rule.profile(play, round, seed) if isinstance(rule, MixByPassRate) else None

    def pace(self, round: int) -> Pace:
        """Return how a round is to be played."""
        pace = Pace()
        for rule in self.rules.values():
            pace = rule.pace(round).over(pace)
        return pace

    def observe(self, round: int, seen: Seen) -> str | None:
        """Let every rule take in a round that is over; return what to say of their moves."""
        told = [rule.observe(round, seen) for rule in self.rules.values()]
        return "; ".join(text for text in told if text) or None

    def metrics(self, round: int) -> dict[str, float]:
        """Return the pace of a round for the log."""
        pace = self.pace(round)
        found = {} if pace.max_tokens is None else {"window": float(pace.max_tokens)}
        for name, weight in (pace.weights or {}).items():
            found[f"share/{name}"] = weight
        for name, levels in (pace.levels or {}).items():
            whole = sum(levels.values())
            found[f"level/{name}"] = sum(n * share for n, share in levels.items()) / whole
        return found

    def state(self) -> dict[str, Any]:
        """Return the rules' states."""
        return {name: rule.state() for name, rule in self.rules.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        for name, rule in self.rules.items():
            rule.restore(state[name])


def _check(spec: Rl) -> None:
    asked = spec.curriculum
    names = [one.name for one in spec.environments]
    moved = asked.ramp or asked.levels or asked.pass_rate
    if moved and len(set(names)) < len(names):
        found = "two environments of one name"
        raise EtudeError("curriculum", found, "different names, for rules go by them")
    if moved and spec.difficulty.keep != "all":
        found = f"moves shares or levels beside difficulty.keep {spec.difficulty.keep}"
        raise EtudeError("curriculum", found, "one of the two", "set difficulty.keep to all")
    if asked.cooling and spec.temperature:
        found = "cooling beside a rule that raises the temperature"
        raise EtudeError("curriculum", found, "one of the two")
