"""The environment `user:desk`: a simulated user at the order desk, over several turns.

Reward 1 only if all calls were well-formed and the task is completed: the desk is as the user
wished and each answer told what was asked (GLM-4.5, arXiv:2508.06471, section 3.4, end-to-end
multi-turn function calling). A program or a language model plays the user, behind one interface.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from etude.data import tasks
from etude.data.sim_clients import Client
from etude.data.tasks_base import Item
from etude.data.tasks_desk_user import client
from etude.errors import EtudeError
from etude.recipe.parts import Environment as Ask
from etude.rl.dialogue import Dialogue
from etude.rl.env_mcp import ServedEnvironment, world
from etude.rl.environment import Chat, Environment, Outcome, Start
from etude.rl.mcp_worlds import DeskWorld, World
from etude.rl.problems import Problem
from etude.rl.sampler import Prompt, Sampler, Sampling
from etude.rl.toolbox import Toolbox, ToolFailure
from etude.text.turns import Message

DONE = "done"  # how a model that plays the user says that it wants nothing more


class User(Protocol):
    """Who talks to the policy. It sees what is said, never the tools."""

    async def reply(self, messages: Chat) -> str | None:
        """Say the next thing, the first for no messages; None ends the conversation."""
        ...

    def content(self) -> bool:
        """Whether all answers told what was asked, as far as this user can tell."""
        ...


class ProgramUser:
    """A seeded program (`etude.data.sim_clients`)."""

    def __init__(self, program: Client):
        self.program = program

    async def reply(self, messages: Chat) -> str | None:
        """Answer the last message."""
        if not messages:
            return self.program.opening()
        return self.program.reply(messages[-1]["content"])

    def content(self) -> bool:
        """Whether every answer held what must be heard."""
        return self.program.missed == 0


class ModelUser:
    """A language model that is told its wishes and plays the user.

    Args:
        sampler, dialogue: of that model.
        wishes: what it wants, told in the system turn.
        seed: of its words.
        max_tokens: of one turn.
        temperature: of its words.
    """

    def __init__(
        self,
        sampler: Sampler,
        dialogue: Dialogue,
        wishes: str,
        *,
        seed: int = 0,
        max_tokens: int = 32,
        temperature: float = 1.0,
    ):
        self.sampler, self.dialogue, self.wishes, self.seed = sampler, dialogue, wishes, seed
        self.params = Sampling(max_tokens, temperature, dialogue.stop)

    async def reply(self, messages: Chat) -> str | None:
        """Let the model say the next thing: for it, the policy is the user."""
        other = {"assistant": "user", "user": "assistant"}
        turned = [{"role": other[m["role"]], "content": m["content"]} for m in messages]
        told = f"You are a client. You want: {self.wishes}. Say {DONE} when you have it."
        start = Start([{"role": "system", "content": told}, *turned], None, thinking=False)
        if not turned:
            start.messages.append({"role": "user", "content": "Hello."})
        prompt = Prompt(self.dialogue.opening(start), self.seed + len(messages))
        [made] = await self.sampler.sample([prompt], self.params)
        said = self.dialogue.read(made.tokens, start).content.strip()
        return None if not said or said.lower().rstrip(".") == DONE else said

    def content(self) -> bool:
        """A model does not tell; the desk's state does."""
        return True


class UserEnvironment(ServedEnvironment):
    """One conversation.

    Args:
        item: of the family `user:desk`.
        user: who talks.
        world, toolbox, how: as of `ServedEnvironment`; `turns` are the policy's, calls included.
    """

    def __init__(self, item: Item, user: User, world: World, toolbox: Toolbox, **how: Any):
        super().__init__(item, world, toolbox, **how)
        self.user = user
        self.said: Chat = []

    async def start(self) -> Start:
        """Let the user begin."""
        begun = await super().start()
        first = await self.user.reply([])
        if first is None:
            raise RuntimeError("the user wants nothing")
        self.said = [{"role": "user", "content": first}]
        return Start(list(self.said), begun.tools, begun.thinking)

    async def step(self, reply: Message) -> Outcome:
        """Call tools, or hand what was said to the user."""
        self.turn += 1
        if self.format_penalty and reply.problems:
            return Outcome(status="aborted")
        if reply.tool_calls:
            if self.turn >= self.turns:
                return Outcome(status="truncated")
            try:
                return Outcome(await self._call(reply), done=False)
            except ToolFailure as failure:
                return Outcome(status="failed", info={"error": str(failure)})
        self.said.append({"role": "assistant", "content": reply.content})
        said = await self.user.reply(self.said)
        if said is None:
            reached = await self.reached()
            right = reached and self.user.content() and not reply.problems
            return Outcome(reward=float(right), info={"state": reached})
        if self.turn >= self.turns:
            return Outcome(status="truncated")
        self.said.append({"role": "user", "content": said})
        return Outcome([{"role": "user", "content": said}], done=False)


def ready(ask: Ask) -> None:
    """Make sure that the desk's server can run.

    Raises:
        EtudeError: it cannot, or the recipe asks for what a conversation has not.
    """
    DeskWorld.check()
    tasks.family(ask.name, ask.tuning)
    if ask.reward != "outcome":
        raise EtudeError(f"environment {ask.name}", f"reward: {ask.reward}", "outcome")


def group(
    problem: Problem, count: int, toolbox: Toolbox, *, format_penalty: bool = True
) -> Sequence[Environment]:
    """Return `count` conversations with equal users over one server.

    Raises:
        EtudeError: the server is not installed.
    """
    ask, item = problem.environment, problem.item
    behind = world("desk", toolbox)
    how = {"thinking": ask.thinking, "turns": ask.turns, "format_penalty": format_penalty}
    return [
        UserEnvironment(item, ProgramUser(client(item)), behind, toolbox, **how)
        for _ in range(count)
    ]
