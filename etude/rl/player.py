"""Attempts at problems, in groups: what training, filters, expert sampling and evaluation share."""

import asyncio
import random
from collections.abc import Sequence

import torch.distributed as dist

from etude.parallel.mesh import Ranks
from etude.recipe.rollouts import ThinkingBudget
from etude.rl.attempt import Attempt, Limits
from etude.rl.dialogue import Dialogue
from etude.rl.problems import Problem
from etude.rl.rollout import play
from etude.rl.sample import Sample
from etude.rl.sampler import Sampler, seed_of
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox

ALONE = Ranks()


class Player:
    """Lets a sampler try problems.

    Args:
        sampler: what produces tokens.
        dialogue: how messages are written down.
        toolbox: tools of the environments.
        max_tokens: longest turn.
        length: longest attempt, prompt included.
        format_penalty: a malformed tool call ends an attempt with reward 0.
        ranks: with several, each plays its share of the problems and all get all attempts, which
            do not depend on how many ranks there are.
        budget: of reasoning, by problem.
        more: further fields of `Limits`.
    """

    def __init__(
        self,
        sampler: Sampler,
        dialogue: Dialogue,
        toolbox: Toolbox,
        *,
        max_tokens: int,
        length: int,
        format_penalty: bool = True,
        ranks: Ranks = ALONE,
        budget: ThinkingBudget | None = None,
        **more: object,
    ):
        self.sampler, self.dialogue, self.toolbox = sampler, dialogue, toolbox
        self.max_tokens, self.length, self.format_penalty = max_tokens, length, format_penalty
        self.ranks, self.budget, self.more = ranks, budget, more
        self.group = group  # a fleet's in its place plays them elsewhere

    def play(
        self,
        problems: Sequence[Problem],
        seed: int,
        *,
        tries: int = 1,
        first: int = 0,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        thinking: int | None = None,
    ) -> list[list[Sample]]:
        """Try each problem `tries` times; attempt t of problem p draws from (seed, p, first + t).

        `thinking` bounds the tokens of reasoning of each turn, in place of `budget`.

        Returns:
            One group of attempts per problem, in order.
        """
        mine = range(self.ranks.rank, len(problems), self.ranks.world)
        how = {"tries": tries, "first": first, "thinking": thinking}
        groups = [self.attempts(problems[p], seed, p, **how) for p in mine]
        self.run(groups, temperature, max_tokens=max_tokens)
        samples = [[attempt.sample for attempt in group] for group in groups]
        return samples if self.ranks.world == 1 else _exchange(samples, self.ranks.world)

    def attempts(
        self,
        problem: Problem,
        seed: int,
        place: int,
        *,
        tries: int,
        first: int = 0,
        thinking: int | None = None,
    ) -> list[Attempt]:
        """Return attempts at one problem that have not begun, for `run`."""
        made = self.group(problem, tries, self.toolbox, format_penalty=self.format_penalty)
        seeds = [seed_of(seed, place, first + t) for t in range(tries)]
        most = self._thinking(seed, place) if thinking is None else thinking
        return [Attempt(one, own, most) for one, own in zip(made, seeds, strict=True)]

    def _thinking(self, seed: int, place: int) -> int | None:
        """Draw the tokens of reasoning of all attempts at one problem."""
        if self.budget is None:
            return None
        rng = random.Random(seed_of(seed, place, "thinking"))
        has = rng.random() < self.budget.share
        return rng.randint(self.budget.least, self.budget.most) if has else None

    def run(
        self,
        groups: Sequence[Sequence[Attempt]],
        temperature: float,
        *,
        budget: int = 0,
        max_tokens: int | None = None,
    ) -> None:
        """Let attempts go on until each is over or has spent its budget of tokens.

        Args:
            groups: attempts, new ones and others.
            temperature: of sampling.
            budget: tokens of each; 0 = no bound.
            max_tokens: longest turn, if not the player's.
        """
        most = max_tokens or self.max_tokens
        limits = Limits(most, self.length, temperature, budget=budget, **self.more)  # type: ignore[arg-type]
        flat = [attempt for group in groups for attempt in group]
        asyncio.run(play(self.sampler, self.dialogue, flat, limits))


def _exchange(groups: list[list[Sample]], world: int) -> list[list[Sample]]:
    shares: list[list[list[Sample]]] = [[] for _ in range(world)]
    dist.all_gather_object(shares, groups)
    total = sum(map(len, shares))
    return [shares[p % world][p // world] for p in range(total)]
