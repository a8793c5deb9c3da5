"""Rollouts: attempts played to their end, in step turn by turn, or each at its own pace."""

import asyncio
from collections.abc import Sequence

from etude.rl.attempt import Attempt
from etude.rl.attempt import Limits as Limits
from etude.rl.dialogue import Dialogue
from etude.rl.environment import Environment
from etude.rl.sample import Sample as Sample
from etude.rl.sampler import Sampler


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
    attempts = [Attempt(one, seed) for one, seed in zip(environments, seeds, strict=True)]
    asyncio.run(play(sampler, dialogue, attempts, limits))
    return [attempt.sample for attempt in attempts]


async def play(
    sampler: Sampler, dialogue: Dialogue, attempts: Sequence[Attempt], limits: Limits
) -> None:
    """Let attempts go on until each is over or has spent its budget; new ones are begun."""
    new = [attempt for attempt in attempts if not attempt.sample.ids and not attempt.over]
    await asyncio.gather(*(attempt.begin(dialogue, limits) for attempt in new))
    for attempt in attempts:
        attempt.spent = 0
    if limits.overlap:
        await asyncio.gather(*(_alone(sampler, dialogue, one, limits) for one in attempts))
    else:
        await _in_step(sampler, dialogue, attempts, limits)


async def _in_step(
    sampler: Sampler, dialogue: Dialogue, attempts: Sequence[Attempt], limits: Limits
) -> None:
    """All decode a turn, then all wait for their tools: who is side by side is always the same."""
    params = limits.sampling(dialogue.stop)
    while live := [attempt for attempt in attempts if attempt.waits(limits)]:
        made = await sampler.sample([attempt.prompt(limits, dialogue) for attempt in live], params)
        pairs = zip(live, made, strict=True)
        await asyncio.gather(*(one.advance(answer, dialogue, limits) for one, answer in pairs))


async def _alone(sampler: Sampler, dialogue: Dialogue, attempt: Attempt, limits: Limits) -> None:
    """One attempt at its own pace: its tools work while the others decode."""
    params = limits.sampling(dialogue.stop)
    while attempt.waits(limits):
        [made] = await sampler.sample([attempt.prompt(limits, dialogue)], params)
        await attempt.advance(made, dialogue, limits)
