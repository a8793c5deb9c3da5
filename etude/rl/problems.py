"""Which problems are tried: drawn by weight from a stage's environments, by seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from etude.data import tasks
from etude.data.tasks import Item
from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl.kinds import function
from etude.rl.sampler import seed_of

AGAIN = 20  # draws for a question not yet in the set, before a repeated one is taken


@dataclass(frozen=True, slots=True)
class Problem:
    """An item and how it is asked.

    Args:
        environment: the recipe's words: family, thinking, turns.
        item: question and answer.
        at: for step-wise rewards, how many calls of the solution are already made; else None.
    """

    environment: Environment
    item: Item
    at: int | None = None


def check(environments: Sequence[Environment]) -> None:
    """Make sure that every environment and level exists, with all that it needs.

    Raises:
        EtudeError: an unknown name (with the closest known one), level or knob; or something is not
            on this machine.
    """
    for environment in environments:
        function(environment.name, "ready", _ready)(environment)
        for level in environment.levels:
            one(environment, random.Random(0), level)


def one(environment: Environment, rng: random.Random, level: int, *, held: bool = False) -> Item:
    """Draw one question of an environment; `held` as in `etude.data.tasks.draw`."""
    return function(environment.name, "draw", _plain)(environment, rng, level, held=held)


def _plain(environment: Environment, rng: random.Random, level: int, *, held: bool) -> Item:
    tuning = environment.tuning
    return tasks.draw(environment.name, rng, level, held=held, tuning=tuning)


def _ready(environment: Environment) -> None:
    tasks.family(environment.name, environment.tuning)
    if environment.reward == "share":
        raise EtudeError(f"environment {environment.name}", "reward: share", "only with unit")


def draw(
    environments: Sequence[Environment], count: int, seed: int, *, held_out: bool = False
) -> list[Problem]:
    """Draw problems, different from each other where the levels have enough.

    Args:
        environments: drawn by `weight`, their levels by theirs.
        count: how many.
        seed: decides everything.
        held_out: from the questions that never train, or from the others.
    """
    seen: set[str] = set()
    found = []
    for place in range(count):
        rng = random.Random(seed_of(seed, place))
        environment = rng.choices(environments, [one.weight for one in environments])[0]
        level = rng.choices(list(environment.levels), list(environment.levels.values()))[0]
        for _ in range(AGAIN):
            item = one(environment, rng, level, held=held_out)
            if item.question not in seen:
                break
        seen.add(item.question)
        step = environment.reward == "step"
        at = rng.randint(0, len(item.calls)) if step else None
        found.append(Problem(environment, item, at))
    return found
