"""Attempts at problems, in groups: what training, filters, expert sampling and evaluation share."""

from collections.abc import Sequence

import torch.distributed as dist

from etude.parallel.mesh import Ranks
from etude.rl.dialogue import Dialogue
from etude.rl.problems import Problem
from etude.rl.rollout import Limits, Sample, rollouts
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
    ):
        self.sampler, self.dialogue, self.toolbox = sampler, dialogue, toolbox
        self.max_tokens, self.length, self.format_penalty = max_tokens, length, format_penalty
        self.ranks = ranks

    def play(
        self,
        problems: Sequence[Problem],
        seed: int,
        *,
        tries: int = 1,
        first: int = 0,
        temperature: float = 1.0,
    ) -> list[list[Sample]]:
        """Try each problem `tries` times; attempt t of problem p draws from (seed, p, first + t).

        Returns:
            One group of attempts per problem, in order.
        """
        limits = Limits(self.max_tokens, self.length, temperature)
        mine = range(self.ranks.rank, len(problems), self.ranks.world)
        environments, seeds = [], []
        for p in mine:
            penalty = self.format_penalty
            environments += group(problems[p], tries, self.toolbox, format_penalty=penalty)
            seeds += [seed_of(seed, p, first + t) for t in range(tries)]
        samples = rollouts(self.sampler, self.dialogue, environments, seeds, limits)
        groups = [samples[at : at + tries] for at in range(0, len(samples), tries)]
        return groups if self.ranks.world == 1 else _exchange(groups, self.ranks.world)


def _exchange(groups: list[list[Sample]], world: int) -> list[list[Sample]]:
    shares: list[list[list[Sample]]] = [[] for _ in range(world)]
    dist.all_gather_object(shares, groups)
    total = sum(map(len, shares))
    return [shares[p % world][p // world] for p in range(total)]
