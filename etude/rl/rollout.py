"""Synchronous rollouts: all attempts of a step decode together, turn by turn.

What was sampled is what trains: a further turn's prompt is the ids so far plus the ids of the new
    observation, never a conversation decoded and encoded again. The mask is true on every token
    the policy produced, the role token that ends its turn included.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from etude.errors import EtudeError
from etude.rl.dialogue import Dialogue
from etude.rl.environment import Chat, Environment, Outcome, Start, Status
from etude.rl.sampler import Completion, Prompt, Sampler, Sampling, seed_of
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

    def add(self, ids: Sequence[int], logp: Sequence[float] | None = None) -> None:
        """Append the policy's tokens (with `logp`) or an observation (without)."""
        self.ids += ids
        self.mask += [logp is not None] * len(ids)
        self.logp += logp if logp is not None else [0.0] * len(ids)

    def end(self, status: Status, reward: float = 0.0, **info: Any) -> None:
        """Say how the attempt ended."""
        self.status, self.reward = status, reward
        self.info |= info

    @property
    def length(self) -> int:
        """Tokens the policy produced."""
        return sum(self.mask)


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds an attempt.

    Args:
        max_tokens: longest turn.
        length: tokens of prompt and turns together, at most (the model's own limit).
        temperature: of sampling; 0 is greedy.
    """

    max_tokens: int
    length: int
    temperature: float = 1.0


def rollouts(
    sampler: Sampler,
    dialogue: Dialogue,
    environments: Sequence[Environment],
    seeds: Sequence[int],
    limits: Limits,
) -> list[Sample]:
    """Play all environments to their end, together.

    Args:
        sampler: what produces tokens.
        dialogue: how messages are written down.
        environments: one attempt each, unused.
        seeds: one per attempt; the same seed and weights give the same attempt in any company.
        limits: bounds of an attempt.

    Returns:
        One sample per environment, in order.

    Raises:
        EtudeError: an opening leaves no room for an answer.
    """
    return asyncio.run(play(sampler, dialogue, environments, seeds, limits))


async def play(
    sampler: Sampler,
    dialogue: Dialogue,
    environments: Sequence[Environment],
    seeds: Sequence[int],
    limits: Limits,
) -> list[Sample]:
    """`rollouts`, inside a running event loop."""
    starts = await asyncio.gather(*(environment.start() for environment in environments))
    samples = [_open(dialogue, start, limits) for start in starts]
    live = list(range(len(samples)))
    params = Sampling(limits.max_tokens, limits.temperature, dialogue.stop)
    turn = 0
    while live:
        prompts = [Prompt(list(samples[i].ids), seed_of(seeds[i], turn)) for i in live]
        made = await sampler.sample(prompts, params)
        steps = [
            _advance(samples[i], one, environments[i], starts[i], dialogue, limits)
            for i, one in zip(live, made, strict=True)
        ]
        alive = await asyncio.gather(*steps)
        live = [i for i, more in zip(live, alive, strict=True) if more]
        turn += 1
    return samples


def _open(dialogue: Dialogue, start: Start, limits: Limits) -> Sample:
    ids = dialogue.opening(start)
    if len(ids) >= limits.length:
        raise EtudeError(
            "environments",
            f"a prompt of {len(ids)} tokens",
            f"fewer than the model's {limits.length}",
        )
    opening = [False] * len(ids), [0.0] * len(ids)
    return Sample(list(ids), *opening, len(ids), messages=list(start.messages))


async def _advance(
    sample: Sample,
    made: Completion,
    environment: Environment,
    start: Start,
    dialogue: Dialogue,
    limits: Limits,
) -> bool:
    """Add one turn and what follows from it; say whether the attempt goes on."""
    sample.add(made.tokens, made.logp)
    sample.turns, sample.version = sample.turns + 1, made.version
    reply = dialogue.read(made.tokens, start)
    sample.replies.append(reply)
    sample.messages.append(reply.chat())
    if made.finish == "length":
        sample.end("truncated", format=False)
        return False
    outcome = await _step(environment, reply)
    sample.info |= outcome.info
    if outcome.done:
        sample.end(outcome.status, outcome.reward)
        return False
    sample.messages += outcome.messages
    sample.add(dialogue.observation(outcome.messages, start))
    if len(sample.ids) >= limits.length:
        sample.end("truncated")
        return False
    return True


async def _step(environment: Environment, reply: Message) -> Outcome:
    try:
        return await environment.step(reply)
    except (
        Exception
    ) as error:  # an environment's fault ends its own attempt; logs count and show it
        return Outcome(status="failed", info={"error": f"{type(error).__name__}: {error}"})
