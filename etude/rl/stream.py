"""One engine that many attempts share: each asks when it likes, and waits for its own answer.

So the tools of one attempt work while others decode. Who decodes side by side depends on timing,
which moves log-probabilities in their last bits and nothing else.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from etude.engine.engine import Engine
from etude.engine.generate import BUDGET, PAGE, ROWS
from etude.engine.request import Answer, GenRequest
from etude.engine.settings import Settings
from etude.errors import EtudeError
from etude.nn.decoder import Decoder


@dataclass(slots=True)
class Asked:
    """An answer under way.

    Attributes:
        answer: what there is of it.
        versions: of the weights that sampled each of its tokens.
        done: resolved when it is whole.
    """

    done: asyncio.Future[None]
    answer: Answer = field(default_factory=Answer)
    versions: list[int] = field(default_factory=list)


class Stream:
    """Turns an engine's loop inside the event loop that asks, one step at a time.

    Args:
        model: the decoder; its weights may change between steps, when `before` says so.
        before: called before each step; returns the number of the weights, and may load new ones
            or raise.
    """

    def __init__(self, model: Decoder, before: Callable[[], int]):
        self.model, self.before = model, before
        self.version: int | None = None
        self._engine: Engine | None = None
        self._asked: dict[str, Asked] = {}
        self._turning: asyncio.Task[None] | None = None

    async def ask(self, request: GenRequest) -> Asked:
        """Answer one request.

        Raises:
            EtudeError: the engine refuses it, or could not go on.
        """
        engine = self._settle()
        # what other weights have read is never found again
        asked = Asked(asyncio.get_running_loop().create_future())
        self._asked[engine.submit(request)] = asked
        if self._turning is None or self._turning.done():
            self._turning = asyncio.create_task(self._turn())
        await asked.done
        return asked

    def owner(self) -> str:
        """Under whose name a request is made: those of other weights share nothing with it."""
        self._settle()
        return f"weights {self.version}"

    def _settle(self) -> Engine:
        """Return the engine, in step with the newest weights."""
        version = self.before()
        if self._engine is None:
            size = {"max_running": ROWS, "page_size": PAGE, "token_budget": max(BUDGET, ROWS)}
            self._engine = Engine(self.model, settings=Settings(**size, speculate=0, text=False))
        elif version != self.version:
            self._engine.renew()
        self.version = version
        return self._engine

    async def _turn(self) -> None:
        try:
            while self._asked:
                engine = self._settle()
                for delta in engine.step():
                    asked = self._asked[delta.id]
                    asked.answer.add(delta)
                    asked.versions += [self.version or 0] * len(delta.token_ids)
                    if delta.finish:
                        del self._asked[delta.id]
                        self._end(asked, delta.id)
                await asyncio.sleep(0)  # the others' turn
        except BaseException as error:  # perhaps in the middle of a step: nothing can be trusted
            self._engine = None
            waiting, self._asked = self._asked, {}
            for asked in waiting.values():
                if not asked.done.done():
                    asked.done.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _end(self, asked: Asked, name: str) -> None:
        failure = asked.answer.failure
        if asked.done.done():  # whoever asked has gone
            return
        if failure is not None:
            told = f"{failure.code}: {failure.message}"
            asked.done.set_exception(EtudeError(name, told, code=1))
        else:
            asked.done.set_result(None)
