"""A model's own attempts at agentic tasks, as `etude.data.agentic` takes them."""

from collections.abc import Sequence

from etude.data.agentic import Messages, Own
from etude.data.tasks_base import Item
from etude.recipe.parts import Environment
from etude.rl.player import Player
from etude.rl.problems import Problem


def own(player: Player, *, seed: int, tries: int = 1, turns: int = 8) -> Own:
    """Return what lets a player try items; attempts that did not end by themselves are left out.

    Args:
        player: of the model.
        seed: of its sampling; each batch of items has its own.
        tries: attempts at each item.
        turns: of an attempt at most.
    """
    batches = iter(range(seed, 1 << 62))

    def attempts(items: Sequence[Item]) -> list[list[Messages]]:
        ask = [Problem(Environment(name=item.family, turns=turns), item) for item in items]
        groups = player.play(ask, next(batches), tries=tries)
        return [[s.messages for s in group if s.status == "completed"] for group in groups]

    return attempts
