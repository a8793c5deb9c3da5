"""Environments `mcp:desk`, `mcp:time`, `mcp:git`: tools of real servers, and the state they leave.

Reward 1 only if everything was well-formed and the attempt's database or repository is what the
worked solution leaves; where something is asked, the answer must be right too (GLM-4.5,
arXiv:2508.06471, section 3.4, end-to-end function calling).
"""

import asyncio
import weakref
from collections.abc import Sequence
from typing import Any

from etude.data import tasks
from etude.data.tasks_base import Item
from etude.errors import EtudeError, closest
from etude.recipe.parts import Environment as Ask
from etude.rl.environment import Chat, Environment, Outcome, Start
from etude.rl.mcp_worlds import WORLDS, Place, World
from etude.rl.problems import Problem
from etude.rl.tasks import StepEnvironment, TaskEnvironment, opening
from etude.rl.toolbox import Toolbox, ToolFailure
from etude.text.turns import Message


class ServedEnvironment(TaskEnvironment):
    """One attempt at an item whose tools live in a server.

    Args:
        item: with `start`, `after` and `asked`.
        world: the server and the places of attempts.
        toolbox, how: as of `TaskEnvironment`.
    """

    def __init__(self, item: Item, world: World, toolbox: Toolbox, **how: Any):
        super().__init__(item, toolbox, **how)
        self.world = world
        self._place: Place = None

    async def start(self) -> Start:
        """Lay out the start, and ask."""
        self._place = await asyncio.to_thread(self.world.open, self.item)
        # an attempt that is cut off is never stepped again
        weakref.finalize(self, self.world.drop, self._place)
        return opening(self.item, thinking=self.thinking)

    async def step(self, reply: Message) -> Outcome:
        """Call tools, or compare state and answer."""
        outcome = await super().step(reply)
        if not outcome.done or outcome.status != "completed":
            return outcome
        reached = await self.reached()
        right = reached and (outcome.reward == 1 or not self.item.data["asked"])
        return Outcome(reward=float(right), info=outcome.info | {"state": reached})

    async def reached(self) -> bool:
        """Whether the state is what the solution leaves."""
        found = await asyncio.to_thread(self.world.state, self._place)
        return found == self.item.data["after"]

    async def _call(self, reply: Message) -> Chat:
        told = []
        for call in reply.tool_calls:
            if call.name not in self.item.tools:
                raise ToolFailure(f"no tool is named {call.name}")
            result = await self.world.call(self._place, call.name, call.arguments)
            told.append({"role": "tool", "tool_call_id": call.id or call.name, "content": result})
        return told


def world(kind: str, toolbox: Toolbox) -> World:
    """Return the world of a kind, whose server ends with the toolbox.

    Raises:
        EtudeError: its server is not installed.
    """
    return toolbox.keep(f"mcp:{kind}", lambda: WORLDS[kind](seconds=toolbox.seconds))


def ready(ask: Ask) -> None:
    """Make sure that the server is installed.

    Raises:
        EtudeError: it is not, there is no such server, or the recipe asks for what it has not.
    """
    kind = ask.name.partition(":")[2]
    if kind not in WORLDS:
        known = ", ".join(f"mcp:{one}" for one in WORLDS)
        near = closest(ask.name, [f"mcp:{one}" for one in WORLDS])
        raise EtudeError(f"environment {ask.name}", "no such server", known, near)
    WORLDS[kind].check()
    tasks.family(ask.name, ask.tuning)
    if ask.reward == "share":
        raise EtudeError(f"environment {ask.name}", "reward: share", "only with unit")


def group(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
) -> Sequence[Environment]:
    """Return `count` environments over one server.

    Raises:
        EtudeError: the server is not installed.
    """
    ask, item = problem.environment, problem.item
    if problem.at is not None:  # one turn of the solution, compared and not called
        return [StepEnvironment(item, problem.at, thinking=ask.thinking) for _ in range(count)]
    behind = world(ask.name.partition(":")[2], toolbox)
    how = {"thinking": ask.thinking, "turns": ask.turns, "format_penalty": format_penalty}
    return [ServedEnvironment(item, behind, toolbox, **how) for _ in range(count)]
