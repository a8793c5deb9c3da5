"""What a policy acts in: small asynchronous objects, used once, made in groups that share a prompt.

An environment speaks in messages (the shape of the OpenAI API), never in tokens: how a system
writes them down is the rollout's business. One environment is one attempt; the attempts of a
group start from equal messages, so that their rewards can be compared.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from etude.text.turns import Message

Chat = list[dict[str, Any]]
Status = Literal["completed", "truncated", "aborted", "failed"]


@dataclass(frozen=True, slots=True)
class Start:
    """What the policy sees first.

    Args:
        messages: the conversation up to the policy's turn.
        tools: function descriptions (JSON schema), or None.
        thinking: whether the policy may reason before it answers.
    """

    messages: Chat
    tools: list[dict[str, Any]] | None = None
    thinking: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What follows from one reply.

    Args:
        messages: new observations (tool results), empty when done.
        reward: of the whole attempt; counts when done.
        done: whether the attempt is over.
        status: how it ended: `completed`; `aborted` by a malformed call; `failed` when a tool
            raised or hung.
        info: what else was seen, for logs and evaluation.
    """

    messages: Chat = field(default_factory=list)
    reward: float = 0.0
    done: bool = True
    status: Status = "completed"
    info: dict[str, Any] = field(default_factory=dict)


class Environment(Protocol):
    """One attempt at one problem."""

    async def start(self) -> Start:
        """Return the opening; called once, first."""
        ...

    async def step(self, reply: Message) -> Outcome:
        """Take one whole turn of the policy."""
        ...
