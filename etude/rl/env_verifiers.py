"""Environments of the package `verifiers`, as `verifiers:NAME` (the interface of its 0.4.0).

There a taskset holds the tasks, a program (harness) plays one by calling a model over HTTP, and the
task's reward functions score the trace: `load_environment(config)` gives an environment with
`taskset`, `serving()` and `run_episode(task, ctx)`. Each attempt here is one such episode whose
model is the policy, see `verifiers_host`. So single turns, many turns and tools are theirs alone.
The program is always `null`, which chats and calls the taskset's tools: the others execute what the
policy writes on this machine, and that is for a sandbox.

The package is no dependency: it pins its own version of mcp.
"""

import asyncio
import json
import random
import weakref
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import islice
from typing import Any

from etude.data.tasks import held_out
from etude.data.tasks_base import Item
from etude.errors import EtudeError
from etude.recipe.parts import Environment as Ask
from etude.rl.environment import Environment, Outcome, Start
from etude.rl.problems import Problem
from etude.rl.toolbox import Toolbox
from etude.rl.verifiers_host import Host, Line, Request, spoken
from etude.text.turns import Message

PREFIX = "verifiers:"
MOST = 10_000  # tasks of a set that has no end
TRIES = 1000
SEAT = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}


class VerifiersEnvironment:
    """One episode of a task.

    Args:
        world: the loaded environment.
        task: one of its taskset's.
        host: where the episode runs; see `Host`.
        thinking: whether the policy may reason first.
        turns: turns of the policy at most.
    """

    def __init__(self, world: Any, task: Any, host: Host, *, thinking: bool, turns: int):
        self.world, self.task, self.host = world, task, host
        self.thinking, self.turns, self.turn = thinking, turns, 0
        self._line: Line
        self._episode: asyncio.Task[Any]
        self._request: Request

    async def start(self) -> Start:
        """Begin the episode, and return its first request to the model."""
        ended = await self.host.run(self._begin())
        if ended:
            raise RuntimeError(f"the episode ended before it asked: {ended.info}")
        return Start(self._request.messages, self._request.tools, self.thinking)

    async def step(self, reply: Message) -> Outcome:
        """Answer the request, and return what follows from it."""
        self.turn += 1
        return await self.host.run(self._go_on(reply))

    async def _begin(self) -> Outcome | None:
        self._line = self.host.line()
        vf = import_module("verifiers.v1")
        client = vf.EvalClientConfig(base_url=self._line.url, api_key_var="ETUDE_NO_KEY")
        ctx = vf.ModelContext(model="policy", client=client)
        self._episode = asyncio.create_task(self.world.run_episode(self.task, ctx))
        # an attempt that is cut off is never stepped again, and its episode must not wait for ever
        weakref.finalize(self, _drop, self.host, self._line, self._episode)
        return await self._next()

    async def _next(self) -> Outcome | None:
        """Wait for a request, or for the end."""
        asks = asyncio.create_task(self._line.requests.get())
        await asyncio.wait({asks, self._episode}, return_when=asyncio.FIRST_COMPLETED)
        if asks.done():
            self._request = asks.result()
            return None
        asks.cancel()
        return _outcome(self._episode.result())

    async def _go_on(self, reply: Message) -> Outcome:
        known, tools = self._request.messages, self._request.tools
        self._request.answer.set_result(spoken(reply))
        ended = await self._next()
        if ended:
            return ended
        seen = self._request.messages
        more, trouble = seen[len(known) + 1 :], ""
        if [_gist(one) for one in seen[: len(known)]] != [_gist(one) for one in known] or not more:
            trouble = "its program rewrote the conversation"
        elif self._request.tools != tools:
            trouble = "its program changed the tools"
        if trouble or self.turn >= self.turns:
            self._episode.cancel()
            status = "failed" if trouble else "truncated"
            return Outcome(status=status, info={"error": trouble} if trouble else {})
        return Outcome(more, done=False)


def _drop(host: Host, line: Line, episode: "asyncio.Task[Any]") -> None:
    if not host.loop.is_closed():
        host.loop.call_soon_threadsafe(episode.cancel)
        host.lines.pop(line.key, None)


def _gist(message: dict[str, Any]) -> tuple[Any, ...]:
    return message.get("role"), message.get("content"), message.get("tool_call_id")


def _outcome(episode: Any) -> Outcome:
    """Read the reward of an ended episode: the sum of its task's weighted rewards."""
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    if errors or len(episode.traces) != 1:
        told = f"{errors[-1].type}: {errors[-1].message}" if errors else "not one trace"
        return Outcome(status="failed", info={"error": told[:200]})
    trace = episode.traces[0]
    rewards = {name: one.value for name, one in trace.rewards.items() if one is not None}
    return Outcome(reward=float(trace.reward), info={"rewards": rewards})


def _name(ask: Ask) -> tuple[str, str]:
    return ask.name.removeprefix(PREFIX), json.dumps(ask.knobs, sort_keys=True)


@cache
def load(name: str, knobs: str) -> tuple[Any, list[Any]]:
    """Load an environment and its tasks.

    Args:
        name: of the installed taskset.
        knobs: of its configuration, as JSON.

    Raises:
        EtudeError: the package is not installed, or cannot load the environment.
    """
    where = f"environment {PREFIX}{name}"
    try:
        loaders = import_module("verifiers.v1.utils.loaders")
    except ImportError as error:
        do = "pip install 'verifiers==0.4.*' (it pins mcp, so that etude's MCP tools are lost)"
        raise EtudeError(where, "verifiers is not installed", do=do) from error
    try:
        config = {"taskset": {"id": name, **json.loads(knobs)}, "agent": SEAT}
        world = loaders.load_environment(loaders.resolve_env_config(config))
        return world, list(islice(world.taskset, MOST))
    except Exception as error:  # whatever a foreign package raises
        found = f"{type(error).__name__}: {error}"
        raise EtudeError(where, found[:300], "an installed taskset with one agent") from error


def ready(ask: Ask) -> None:
    """Make sure that the environment loads.

    Raises:
        EtudeError: it does not, or the recipe asks for what it has not.
    """
    if ask.reward != "outcome":
        raise EtudeError(f"environment {ask.name}", f"reward: {ask.reward}", "outcome")
    load(*_name(ask))


def draw(ask: Ask, rng: random.Random, level: int, *, held: bool) -> Item:
    """Draw a task of the side asked for; one in five, by hash, is held out.

    Raises:
        EtudeError: another level than 0, or no task on that side.
    """
    if level:
        raise EtudeError(f"task {ask.name}", f"level {level}", "0 to 0")
    _, tasks = load(*_name(ask))
    for _ in range(TRIES if tasks else 0):
        place = rng.randrange(len(tasks))
        data = tasks[place].data
        item = Item(ask.name, 0, data.prompt_text or tasks[place].key, "", data={"place": place})
        if held_out(item) == held:
            return item
    side = "held out" if held else "for training"
    raise EtudeError(f"task {ask.name}", f"{len(tasks)} tasks, and none is {side}")


def group(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
) -> Sequence[Environment]:
    """Return `count` environments over one server, which ends with the toolbox.

    Raises:
        EtudeError: the environment does not load.
    """
    ask = problem.environment
    world, tasks = load(*_name(ask))

    def open_host() -> Host:
        host = Host()
        host.wait(host.stack.enter_async_context(world.serving()))
        return host

    host = toolbox.keep(f"{ask.name} {_name(ask)[1]}", open_host)
    task, how = tasks[problem.item.data["place"]], {"thinking": ask.thinking, "turns": ask.turns}
    return [VerifiersEnvironment(world, task, host, **how) for _ in range(count)]
