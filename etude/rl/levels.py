"""Each environment at its own level: up when most attempts succeed, down when few do."""

from collections.abc import Mapping, Sequence
from typing import Any

from etude.errors import EtudeError, closest
from etude.recipe.curricula import Levels
from etude.recipe.parts import Environment
from etude.rl.curriculum_pace import Pace, Seen


class AdaptLevels:
    """Moves one level at a time, by the share of solved attempts since the last move.

    Args:
        rule: bounds.
        environments: of the stage; the levels they list are those that there are.

    Raises:
        EtudeError: an environment that the stage has not.
    """

    def __init__(self, rule: Levels, environments: Sequence[Environment]):
        self.rule = rule
        known = {one.name: sorted(one.levels) for one in environments}
        for name in rule.names:
            if name not in known:
                where = "curriculum.levels.names"
                raise EtudeError(where, f"no environment {name}", do=closest(name, known))
        self.steps = {name: known[name] for name in rule.names or known}
        self.at = dict.fromkeys(self.steps, 0)
        self.recent: dict[str, list[list[int]]] = {name: [] for name in self.steps}

    def pace(self, round: int) -> Pace:
        """Return one level per environment."""
        return Pace(levels={name: {self.steps[name][at]: 1.0} for name, at in self.at.items()})

    def observe(self, round: int, seen: Seen) -> str | None:
        """Move each environment that has had enough attempts at its level."""
        moves = [self._move(name, seen) for name in self.steps]
        return "; ".join(move for move in moves if move) or None

    def _move(self, name: str, seen: Seen) -> str | None:
        level, recent = self.steps[name][self.at[name]], self.recent[name]
        right, tried = seen.solved.get((name, level), (0, 0))
        if tried:
            recent.append([right, tried])
        # the latest rounds that together have enough attempts
        while sum(tried for _, tried in recent[1:]) >= self.rule.episodes:
            recent.pop(0)
        attempts = sum(tried for _, tried in recent)
        if attempts < self.rule.episodes:
            return None
        rate = sum(right for right, _ in recent) / attempts
        step = (rate > self.rule.up) - (rate < self.rule.down)
        if not step or not 0 <= self.at[name] + step < len(self.steps[name]):
            return None
        self.at[name] += step
        self.recent[name] = []
        after = self.steps[name][self.at[name]]
        return f"{name}: level {level} -> {after}, {rate:.0%} of {attempts} attempts solved"

    def state(self) -> dict[str, Any]:
        """Return the levels and the recent attempts."""
        recent = {name: [list(pair) for pair in pairs] for name, pairs in self.recent.items()}
        return {"at": dict(self.at), "recent": recent}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.at = dict(state["at"])
        self.recent = {
            name: [list(pair) for pair in pairs] for name, pairs in state["recent"].items()
        }
