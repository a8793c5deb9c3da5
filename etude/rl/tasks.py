"""Checkable tasks as environments: one reply, or several turns with tools really called."""

from collections.abc import Sequence
from typing import Any

from etude.data import tasks
from etude.data.tasks import Item
from etude.rl.environment import Chat, Environment, Outcome, Start
from etude.rl.kinds import function
from etude.rl.problems import Problem
from etude.rl.toolbox import Toolbox, ToolFailure
from etude.text.turns import Message


class TaskEnvironment:
    """One attempt at an item, scored by its final answer (GLM-4.5, arXiv:2508.06471, section 3.3).

    Args:
        item: the question, its tools and its answer.
        toolbox: calls the tools.
        thinking: whether the policy may reason first.
        turns: turns of the policy at most; a tool call in the last one ends the attempt unsolved.
        format_penalty: a malformed turn ends the attempt at once with reward 0.
    """

    def __init__(
        self,
        item: Item,
        toolbox: Toolbox,
        *,
        thinking: bool = False,
        turns: int = 1,
        format_penalty: bool = True,
    ):
        self.item, self.toolbox, self.thinking = item, toolbox, thinking
        self.turns, self.format_penalty = turns, format_penalty
        self.turn = 0

    async def start(self) -> Start:
        """Ask the question."""
        return opening(self.item, thinking=self.thinking)

    async def step(self, reply: Message) -> Outcome:
        """Score an answer, or call the tools that were asked for."""
        info = self._notes(reply)
        self.turn += 1
        if self.format_penalty and reply.problems:
            return Outcome(status="aborted", info=info)
        if not reply.tool_calls:
            return Outcome(reward=tasks.score(self.item, reply), info=info)
        if self.turn >= self.turns:
            return Outcome(status="truncated", info=info)
        try:
            return Outcome(await self._call(reply), done=False, info=info)
        except ToolFailure as failure:
            return Outcome(status="failed", info=info | {"error": str(failure)})

    async def _call(self, reply: Message) -> Chat:
        pages = self.item.data.get("pages")
        told = []
        for call in reply.tool_calls:
            result = await self.toolbox.call(call.name, call.arguments, pages)
            told.append({"role": "tool", "tool_call_id": call.id or call.name, "content": result})
        return told

    def _notes(self, reply: Message) -> dict[str, Any]:
        """Say of the first turn whether it is a well-formed call, and the one a solution makes."""
        if self.turn or not self.item.calls:
            return {}
        valid = bool(reply.tool_calls) and not reply.problems
        return {"valid": valid, "exact": valid and makes_call(self.item, 0, reply)}


class StepEnvironment:
    """One turn of a worked solution: reward 1 only for exactly the call that belongs there.

    The conversation up to that turn is the solution's own. After its last call the answer is due.
    Source: GLM-4.5, arXiv:2508.06471, section 3.4 (step-wise function-calling reward).

    Args:
        item: a question with a worked solution.
        at: calls already made.
        thinking: whether the policy may reason first.
    """

    def __init__(self, item: Item, at: int, *, thinking: bool = False):
        self.item, self.at, self.thinking = item, at, thinking

    async def start(self) -> Start:
        """Ask, and show the calls made so far with their results."""
        return opening(self.item, thinking=self.thinking, calls=self.at)

    async def step(self, reply: Message) -> Outcome:
        """Compare the call: name, arguments, every field."""
        if reply.problems:
            return Outcome(status="aborted", info={"valid": False, "exact": False})
        if self.at == len(self.item.calls):
            right = not reply.tool_calls and tasks.score(self.item, reply) == 1
            return Outcome(reward=float(right))
        right = makes_call(self.item, self.at, reply)
        return Outcome(reward=float(right), info={"valid": bool(reply.tool_calls), "exact": right})


def opening(item: Item, *, thinking: bool, calls: int = 0) -> Start:
    """Return the conversation up to the policy's turn, after the first `calls` of the solution."""
    messages: Chat = [{"role": "user", "content": item.question}]
    for call in item.calls[:calls]:
        function = {"name": call.name, "arguments": call.arguments}
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
        )
        messages.append({"role": "tool", "content": call.result})
    schemas = [tool.schema() for tool in item.toolset()]
    return Start(messages, schemas or None, thinking)


def makes_call(item: Item, at: int, reply: Message) -> bool:
    """Say whether a reply makes exactly the solution's call number `at`, and no other."""
    if at >= len(item.calls) or len(reply.tool_calls) != 1:
        return False
    call, truth = reply.tool_calls[0], item.calls[at]
    return call.name == truth.name and call.arguments == truth.arguments


def group(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
) -> Sequence[Environment]:
    """Return `count` environments that share the problem's opening.

    Raises:
        EtudeError: something that they need is not on this machine.
    """
    make = function(problem.environment.name, "group", _plain)
    return make(problem, count, toolbox, format_penalty=format_penalty)


def _plain(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool
) -> Sequence[Environment]:
    ask = problem.environment
    if problem.at is not None:
        return [
            StepEnvironment(problem.item, problem.at, thinking=ask.thinking) for _ in range(count)
        ]
    options = {"thinking": ask.thinking, "turns": ask.turns, "format_penalty": format_penalty}
    return [TaskEnvironment(problem.item, toolbox, **options) for _ in range(count)]
