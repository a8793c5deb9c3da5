"""A finished attempt: its ids, and what the sampler and later the trainer know of each.

What was sampled is what trains: a further turn's prompt is the ids so far plus the ids of the new
observation, never a conversation decoded and encoded again. The mask is true on every token
the policy produced, the role token that ends its turn included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from etude.rl.environment import Chat, Status
from etude.text.turns import Message


@dataclass(slots=True)
class Sample:
    """One attempt as the trainer needs it.

    Args:
        ids: prompt, the policy's tokens and observations, in order.
        mask: per id, whether the policy produced it.
        logp: per id, the sampler's log-probability; 0 where not masked.
        prompt: ids before the policy's first token.
        reward: of the whole attempt.
        status: how it ended.
        version: of the weights that sampled its last token.
        turns: turns of the policy.
        replies: its turns, parsed.
        messages: the whole conversation, observations included.
        info: what the environment noted.
        raw: the environment's reward before shaping; `reward` is what trains.
        terms: parts of the reward, by name.
        old: per id, the trainer's log-probability at the start of the update; None = `logp`.
        ref: per id, the frozen reference's log-probability.
        value: per id, the critic's value of the position that predicts it.
        beyond: the critic's value after the last id.
        advantage, returns: per id, 0 where not masked.
        versions: per id, the weights that sampled it, -1 where not masked; None = all `version`.
        routes: int16 [len(ids), layers, active], the experts each id chose in the sampler; -1 where
            it did not say.
        forced: places of ids that a budget of reasoning forced; they do not train.
        key: of its line among the records (`rl.record`); "" = it is not recorded.
    """

    ids: list[int]
    mask: list[bool]
    logp: list[float]
    prompt: int
    reward: float = 0.0
    status: Status = "completed"
    version: int = 0
    turns: int = 0
    replies: list[Message] = field(default_factory=list)
    messages: Chat = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    raw: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    old: list[float] | None = None
    ref: list[float] | None = None
    value: list[float] | None = None
    beyond: float = 0.0
    advantage: list[float] | None = None
    returns: list[float] | None = None
    versions: list[int] | None = None
    routes: Tensor | None = None
    forced: list[int] | None = None
    key: str = ""

    def add(
        self,
        ids: Sequence[int],
        logp: Sequence[float] | None = None,
        versions: Sequence[int] | None = None,
    ) -> None:
        """Append the policy's tokens (with `logp` and `versions`) or an observation (without)."""
        if self.versions is None:
            self.versions = [self.version if own else -1 for own in self.mask]
        self.ids += ids
        self.mask += [logp is not None] * len(ids)
        self.logp += logp if logp is not None else [0.0] * len(ids)
        self.versions += versions if versions is not None else [-1] * len(ids)

    def end(self, status: Status, reward: float = 0.0, **info: Any) -> None:
        """Say how the attempt ended."""
        self.status, self.reward, self.raw = status, reward, reward
        self.info |= info

    @property
    def length(self) -> int:
        """Tokens the policy produced."""
        return sum(self.mask)

    @property
    def oldest(self) -> int:
        """Of the weights behind its tokens, the oldest ones' version."""
        own = zip(self.versions or (), self.mask, strict=False)
        return min((version for version, mine in own if mine), default=self.version)
