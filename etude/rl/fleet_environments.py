"""Environments played by a fleet's workers, which may die in the middle of an attempt."""

import asyncio
from collections.abc import Sequence
from typing import Any

from etude.rl.environment import Environment, Outcome, Start
from etude.rl.fleet import Crew, Died, Placed
from etude.rl.problems import Problem
from etude.rl.toolbox import Toolbox
from etude.text.turns import Message


class EnvironmentFleet:
    """Makes groups of environments that live in workers; stands for `rl.tasks.group`.

    Args:
        placed: workers that hold an `EnvironmentWorker`.
        restarts: see `Crew`.
    """

    def __init__(self, placed: Placed, *, restarts: int = 3):
        self.crew = Crew(placed, restarts=restarts)
        self._made = 0
        self._times = [0] * placed.count  # that the worker of each place was replaced
        self._reviving: dict[int, asyncio.Task[None]] = {}

    def group(
        self, problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
    ) -> Sequence[Environment]:
        """Return `count` environments that share the problem's opening; `toolbox` is not used."""
        made = []
        for _ in range(count):
            self._made += 1
            made.append(FarEnvironment(self, self._made, problem, format_penalty=format_penalty))
        return made

    async def ask(self, place: int, method: str, *args: Any) -> Any:
        """Call a worker, as often as it dies; the new one knows no attempt.

        Raises:
            EtudeError: workers die faster than work is done.
        """
        while True:
            times = self._times[place]
            try:
                found = await self.crew.placed.call(place, method, *args)
            except Died as died:
                if self._times[place] == times:  # others may have seen the same death
                    task = self._reviving.get(place)
                    if task is None:
                        task = asyncio.create_task(self._revive(place, died))
                        self._reviving[place] = task
                    await task
                continue
            self.crew.worked()
            return found

    def close(self) -> None:
        """End the workers."""
        self.crew.placed.close()

    async def _revive(self, place: int, died: Died) -> None:
        try:
            await self.crew.revive(place, died)
            self._times[place] += 1
        finally:
            del self._reviving[place]


class FarEnvironment:
    """One attempt, played in a worker.

    The replies given so far are kept: where the worker has died, its successor plays them again. An
    environment that is decided by them (all of ours are) is then where it was.

    Args:
        fleet: its workers.
        number: of the attempt, unique in the fleet.
        problem: what is tried.
        format_penalty: as in `rl.tasks.group`.
    """

    def __init__(
        self, fleet: EnvironmentFleet, number: int, problem: Problem, *, format_penalty: bool
    ):
        self.fleet, self.id = fleet, str(number)
        self.place = number % fleet.crew.placed.count
        self.problem, self.format_penalty = problem, format_penalty
        self.replies: list[Message] = []

    async def start(self) -> Start:
        """Ask the question."""
        how = self.id, self.problem, self.format_penalty
        return await self.fleet.ask(self.place, "start", *how)

    async def step(self, reply: Message) -> Outcome:
        """Take one turn."""
        outcome = await self._turn(len(self.replies), reply)
        while outcome is None:
            await self.start()
            for turn, earlier in enumerate(self.replies):
                await self._turn(turn, earlier)
            outcome = await self._turn(len(self.replies), reply)
        self.replies.append(reply)
        return outcome

    async def _turn(self, turn: int, reply: Message) -> Outcome | None:
        return await self.fleet.ask(self.place, "step", self.id, turn, reply)
