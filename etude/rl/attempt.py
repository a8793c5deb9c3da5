"""One attempt while it is played: what it asks of the sampler, and what follows from an answer."""

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from etude.errors import EtudeError
from etude.rl.dialogue import Dialogue
from etude.rl.environment import Environment, Outcome, Start, Status
from etude.rl.frozen import turns
from etude.rl.sample import Sample
from etude.rl.sampler import Completion, Prompt, Sampling, seed_of
from etude.text.turns import Message


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds an attempt, and how it is sampled.

    Args:
        max_tokens: longest turn.
        length: tokens of prompt and turns together, at most (the model's own limit).
        temperature: of sampling; 0 is greedy.
        seconds: an environment that takes longer over one reply has failed.
        budget: tokens of this round, after which the attempt rests; 0 = as many as it needs.
        repetition: as of `Sampling`.
        routes: as of `Sampling`.
        overlap: attempts do not wait for each other between turns.
    """

    max_tokens: int
    length: int
    temperature: float = 1.0
    seconds: float = 60.0
    budget: int = 0
    repetition: tuple[int, float] | None = None
    routes: bool = False
    overlap: bool = False

    def sampling(self, stop: frozenset[int]) -> Sampling:
        """Return how the sampler is asked."""
        return Sampling(self.max_tokens, self.temperature, stop, self.repetition, self.routes)


@dataclass(slots=True, eq=False)
class Attempt:
    """An environment and what has been said in it.

    Args:
        environment: unused, of this attempt alone.
        seed: of all its turns.
        thinking: tokens of reasoning that a turn may hold; None = as many as it wants.

    Attributes:
        sample: what there is so far; set by `begin`.
        turn: tokens of the turn under way, where a budget has cut it.
        spent: tokens of this round.
        over: it has ended.
    """

    environment: Environment
    seed: int
    thinking: int | None = None
    start: Start = field(default_factory=lambda: Start([]))
    sample: Sample = field(default_factory=lambda: Sample([], [], [], 0))
    turn: list[int] = field(default_factory=list)
    spent: int = 0
    over: bool = False

    async def begin(self, dialogue: Dialogue, limits: Limits) -> None:
        """Open the conversation; an environment that cannot has failed.

        Raises:
            EtudeError: the opening leaves no room for an answer, or the environment refuses.
        """
        try:
            async with asyncio.timeout(limits.seconds):
                self.start = await self.environment.start()
        except EtudeError:
            raise
        except Exception as error:
            self._end("failed", error=_told(error, limits))
            return
        ids = dialogue.opening(self.start)
        if len(ids) >= limits.length:
            found, most = (
                f"a prompt of {len(ids)} tokens",
                f"fewer than the model's {limits.length}",
            )
            raise EtudeError("environments", found, most)
        opening = [False] * len(ids), [0.0] * len(ids)
        self.sample = Sample(list(ids), *opening, len(ids), messages=list(self.start.messages))

    def waits(self, limits: Limits) -> bool:
        """Whether it can go on in this round."""
        return not self.over and not (limits.budget and self.spent >= limits.budget)

    def prompt(self, limits: Limits, dialogue: Dialogue) -> Prompt:
        """Return what it asks of the sampler."""
        most = None
        if limits.budget:
            most = min(limits.budget - self.spent, limits.max_tokens - len(self.turn))
        bound = dialogue.thinking(self.start, self.thinking)
        return Prompt(list(self.sample.ids), seed_of(self.seed, self.sample.turns), most, bound)

    async def advance(self, made: Completion, dialogue: Dialogue, limits: Limits) -> None:
        """Add what was sampled and, where that ends a turn, what follows from it."""
        sample, known = self.sample, len(self.sample.ids)
        versions = made.versions or [made.version] * len(made.tokens)
        sample.add(made.tokens, made.logp, versions)
        sample.version = made.version
        if made.forced:
            sample.forced = [*(sample.forced or ()), *(known + at for at in made.forced)]
        if made.routes is not None:
            sample.routes = _joined(sample.routes, made.routes, known, len(sample.ids))
        self.turn += made.tokens
        self.spent += len(made.tokens)
        room = len(self.turn) < limits.max_tokens and len(sample.ids) < limits.length
        if made.finish == "length" and limits.budget and room:
            return  # the budget cut it, and it goes on in the next round
        await self._turn(made.finish, dialogue, limits)

    async def replay(self, sample: Sample, dialogue: Dialogue) -> bool:
        """Go back to where a saved attempt was: its environment takes the same turns again.

        Returns:
            Whether it says what it said then; if not, this attempt is of no more use.
        """
        told = turns(sample)
        unfinished = told.pop() if self.turn else []
        try:
            self.start = await self.environment.start()
            sample.replies = [dialogue.read(tokens, self.start) for tokens in told]
            self.sample, at = sample, sample.prompt
            for tokens, reply in zip(told, () if self.over else sample.replies, strict=False):
                outcome = await self.environment.step(reply)
                at += len(tokens)
                ids = [] if outcome.done else dialogue.observation(outcome.messages, self.start)
                if outcome.done or ids != sample.ids[at : at + len(ids)]:
                    return False
                at += len(ids)
        except EtudeError:
            raise
        except Exception:  # it fails now where it did not then
            return False
        return self.over or at + len(unfinished) == len(sample.ids)

    async def _turn(self, finish: str, dialogue: Dialogue, limits: Limits) -> None:
        """Read a whole turn and step the environment."""
        sample, tokens = self.sample, self.turn
        self.turn = []
        sample.turns += 1
        reply = dialogue.read(tokens, self.start)
        sample.replies.append(reply)
        sample.messages.append(reply.chat())
        if finish in ("length", "repetition"):
            more = {"repetition": True} if finish == "repetition" else {}
            self._end("truncated", format=False, **more)
            return
        outcome = await _step(self.environment, reply, limits)
        sample.info |= outcome.info
        if outcome.done:
            sample.end(outcome.status, outcome.reward)
            self.over = True
            return
        sample.messages += outcome.messages
        sample.add(dialogue.observation(outcome.messages, self.start))
        sample.routes = _padded(sample.routes, len(sample.ids))
        if len(sample.ids) >= limits.length:
            self._end("truncated")

    def _end(self, status: Status, **info: Any) -> None:
        self.sample.end(status, **info)
        self.over = True


async def _step(environment: Environment, reply: Message, limits: Limits) -> Outcome:
    """Step; an environment's fault ends its own attempt, and logs count and show it."""
    try:
        async with asyncio.timeout(limits.seconds):
            outcome = await environment.step(reply)
        if outcome.done and not math.isfinite(outcome.reward):
            raise ValueError(f"a reward of {outcome.reward}")
    except Exception as error:
        return Outcome(status="failed", info={"error": _told(error, limits)})
    return outcome


def _told(error: Exception, limits: Limits) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer of the environment in {limits.seconds:g} s"
    return f"{type(error).__name__}: {error}"


def _joined(old: Tensor | None, new: Tensor, known: int, total: int) -> Tensor:
    """Keep what is known of the first `known` ids, for what was trained saw those experts."""
    routes = _padded(new, total)
    if old is not None and routes is not None:
        kept = old[:known]
        routes[: len(kept)] = torch.where(kept >= 0, kept, routes[: len(kept)])
    return routes if routes is not None else new


def _padded(routes: Tensor | None, total: int) -> Tensor | None:
    """Ids of which no experts are known have -1."""
    if routes is None:
        return None
    more = routes.new_full((total - len(routes), *routes.shape[1:]), -1)
    return torch.cat([routes, more])
