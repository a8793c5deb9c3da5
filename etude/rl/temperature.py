"""Raise the sampling temperature once the reward stands still (arXiv:2508.06471, section 3.2).

A policy that has converged at one temperature explores little. When the mean reward of the last
rollouts no longer rises, held-out problems are solved at a grid of temperatures, and the next
phase samples at the largest one that costs no more than a tolerance against the best.
"""

from collections.abc import Mapping, Sequence

from etude.recipe.parts import Temperature
from etude.recipe.stages import Rl
from etude.rl.player import Player
from etude.rl.problems import draw
from etude.rl.sampler import seed_of


def slope(rewards: Sequence[float]) -> float:
    """Return the least-squares slope of the rewards per step."""
    n = len(rewards)
    middle = (n - 1) / 2
    spread = sum((step - middle) ** 2 for step in range(n))
    return sum((step - middle) * reward for step, reward in enumerate(rewards)) / spread


def stable(rewards: Sequence[float], rule: Temperature) -> bool:
    """Say whether the last `rule.window` rewards of this phase have stopped rising."""
    if len(rewards) < max(2, rule.window):
        return False
    return slope(rewards[-rule.window :]) < rule.slope


def choose(scores: Mapping[float, float], current: float, rule: Temperature) -> float:
    """Return the temperature of the next phase.

    The largest whose held-out accuracy is within `rule.tolerance` of the best; never below the
    current one, since the rule is there to restore exploration (our reading: the report only
    speaks of raising it).
    """
    best = max(scores.values())
    # 1e-9: shares of equal counts may differ in the last bit
    return max(
        current, *(t for t, score in scores.items() if score >= best - rule.tolerance - 1e-9)
    )


def settle(
    player: Player, spec: Rl, seed: int, *, round: int, rewards: Sequence[float], current: float
) -> tuple[float, str]:
    """Measure the grid if the reward stands still.

    Args:
        player: tries held-out problems.
        spec: the stage.
        seed: of the stage.
        round: the one that comes.
        rewards: means of this phase's rounds.
        current: temperature.

    Returns:
        The temperature, and what to say; "" where nothing was measured.
    """
    rule = spec.temperature
    if rule is None or not stable(rewards, rule):
        return current, ""
    where = seed_of(seed, "temperature")
    problems = draw(spec.environments, rule.problems, where, held_out=True)
    scores = {}
    for value in rule.grid:
        groups = player.play(
            problems, seed_of(seed, "temperature", round, value), temperature=value
        )
        scores[value] = sum(group[0].reward for group in groups) / len(groups)
    found = choose(scores, current, rule)
    tried = " ".join(f"{value:g}:{score:.2f}" for value, score in scores.items())
    return found, f"reward is stable: temperature {current:g} -> {found:g} ({tried})"
