"""Work spread over workers that may die: each piece is done once, whoever does it.

Nothing here knows Ray: `parallel.launch` places the workers, and tests place them in this process.
A piece of work has an id. It is given to one worker; if that one dies or is silent for too long, it
is replaced and the piece is given out again; of two results for one id the first counts.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.rl.sampler import Completion, Prompt, Sampling

PIECES = 4  # of the work of a call, per worker: a slow one holds up the others less


class Died(Exception):
    """A worker is no more, or did not answer in time; the message says which."""


class Placed(Protocol):
    """Workers somewhere, by place from 0 on."""

    count: int

    async def call(self, place: int, method: str, *args: Any) -> Any:
        """Call a method of a worker's object.

        Raises:
            Died: it ended or is late; another error is the method's own.
        """
        ...

    async def replace(self, place: int) -> None:
        """Put a new worker, which knows nothing, in the place of one that died."""
        ...

    def share(self, value: Any) -> Any:
        """Return a handle of a large value, which a call takes as an argument in its stead."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


@dataclass(slots=True)
class Count:
    """What a fleet has been through: pieces done, workers replaced, results that came twice."""

    done: int = 0
    replaced: int = 0
    repeated: int = 0


class Crew:
    """Gives pieces of work to workers and replaces those that die.

    Args:
        placed: the workers.
        restarts: replacements in a row, without a piece done in between, before it gives up.

    Attributes:
        count: see `Count`.
        greeting: method and arguments that a new worker is called with first; None = none.
    """

    def __init__(self, placed: Placed, *, restarts: int = 3):
        self.placed, self.restarts, self.count = placed, restarts, Count()
        self.greeting: tuple[str, tuple[Any, ...]] | None = None
        self._failures = 0

    async def run(self, method: str, pieces: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Call `method` once for each piece, on whichever worker is free.

        Args:
            method: of the worker's object.
            pieces: id -> arguments.

        Returns:
            id -> result, for every piece.

        Raises:
            EtudeError: workers die faster than work is done.
        """
        waiting, done = deque(pieces), dict[str, Any]()

        async def serve(place: int) -> None:
            while waiting:
                piece = waiting.popleft()
                try:
                    result = await self.placed.call(place, method, *pieces[piece])
                except Died as died:
                    waiting.appendleft(piece)
                    await self.revive(place, died)
                    continue
                self.worked()
                if piece in done:
                    self.count.repeated += 1
                else:
                    done[piece] = result
                    self.count.done += 1

        await _together([serve(place) for place in range(self.placed.count)])
        return done

    async def everyone(self, method: str, *args: Any) -> None:
        """Call `method` of every worker, and from now on first of each new one."""
        self.greeting = method, args

        async def tell(place: int) -> None:
            try:
                await self.placed.call(place, method, *args)
            except Died as died:
                await self.revive(place, died)

        await _together([tell(place) for place in range(self.placed.count)])

    def worked(self) -> None:
        """Note that a worker has done something: deaths are counted anew."""
        self._failures = 0

    async def revive(self, place: int, died: Died) -> None:
        """Replace a worker, and tell the new one what all know."""
        while True:
            self._failures += 1
            if self._failures > self.restarts:
                found = f"{self._failures} workers died in a row, the last: {died}"
                raise EtudeError("engine.ray", found, do="see the logs of Ray", code=1) from died
            self.count.replaced += 1
            await self.placed.replace(place)
            try:
                if self.greeting:
                    method, args = self.greeting
                    await self.placed.call(place, method, *args)
            except Died as again:
                died = again
                continue
            return


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FleetSampler:
    """`rl.sampler.Sampler` over rollout workers, each with this engine and a copy of the policy.

    What a prompt samples depends on its seed and ids, so it does not matter which worker takes it,
    nor how often a worker died before.

    Args:
        placed: workers that hold a `RolloutWorker`.
        model: the policy.
        restarts: see `Crew`.
        version: of the weights at the start.
    """

    def __init__(self, placed: Placed, model: Decoder, *, restarts: int = 3, version: int = 0):
        self.crew, self.model, self.version = Crew(placed, restarts=restarts), model, version
        self._calls = 0

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer each prompt, in order.

        Raises:
            EtudeError: workers die faster than work is done.
        """
        if self.crew.greeting is None:
            await self.update(None, self.version)
        self._calls += 1
        size = max(1, -(-len(prompts) // (PIECES * self.crew.placed.count)))
        starts = range(0, len(prompts), size)
        names = [f"{self._calls}.{start}" for start in starts]
        parts = [(list(prompts[start : start + size]), params) for start in starts]
        done = await self.crew.run("sample", dict(zip(names, parts, strict=True)))
        return [completion for name in names for completion in done[name]]

    async def update(self, weights: Mapping[str, Tensor] | None, version: int) -> None:
        """Put the weights where all workers read them, once, and have each copy them."""
        state = self.model.state_dict() if weights is None else weights
        plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
        handle = self.crew.placed.share(plain)
        await self.crew.everyone("load", handle, version)
        self.version = version

    def close(self) -> None:
        """End the workers."""
        self.crew.placed.close()
