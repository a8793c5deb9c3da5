"""Models that reward: admitted only when they are good, and compared with the truth in every round.

The truth is the environment's own reward, which such a term replaces: the policy never trains on
it, the log shows how far the two part.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Any, Protocol

from etude.data import tasks_judge
from etude.errors import EtudeError
from etude.objectives.reward import correlation, without_length
from etude.recipe import rewards as spec
from etude.recipe.parts import Environment
from etude.rl.judge import Ask, Judge, answer, answered, measure
from etude.rl.judge_bias import Watch
from etude.rl.problems import Problem, draw
from etude.rl.reward_model import RewardModel
from etude.rl.rollout import Sample
from etude.rl.sampler import seed_of

Groups = Sequence[Sequence[Sample]]
Z = NormalDist().inv_cdf(0.975)


class Models(Protocol):
    """Where models that reward come from."""

    def ask(self, by: str) -> Ask:
        """Return what asks a stage's model, or the policy itself for `self`."""
        ...

    def scalar(self, by: str) -> RewardModel:
        """Return a stage's reward model."""
        ...


class Judged:
    """One term: a judge or a reward model.

    Args:
        term: what the recipe says.
        where: its key in the recipe.
        models: where its model comes from.
        environments: that it rewards.
        seed: of the pairs that measure it.

    Attributes:
        accuracy: on held-out pairs; None before it was measured.
    """

    def __init__(
        self,
        term: spec.Judge | spec.Scalar,
        where: str,
        models: Models,
        environments: Sequence[Environment],
        seed: int,
    ):
        self.term, self.where, self.seed = term, where, seed
        self.environments = environments
        self.watch = Watch(term.bias)
        self.accuracy: float | None = None
        self.judge: Judge | None = None
        self.scalar: RewardModel | None = None
        if isinstance(term, spec.Judge):
            self.judge = Judge(term, models.ask(term.by))
        else:
            self.scalar = models.scalar(term.by)

    def admit(self) -> str | None:
        """Measure it before it rewards for the first time; return what to say.

        Raises:
            EtudeError: it is right too seldom.
        """
        if self.accuracy is not None:
            return None
        if isinstance(self.term, spec.Judge):
            assert self.judge is not None
            where = seed_of(self.seed, "judge", self.where)
            drawn = draw(self.environments, self.term.pairs, where, held_out=True)
            n = len(drawn)
            right = measure(self.judge, [problem.item for problem in drawn], random.Random(where))
            found = f"{right / n:.3f} of {n} held-out pairs decided rightly"
            low, high = interval(right, n)
            unread = self.judge.count.malformed
            found += f" (95%: {low:.2f} to {high:.2f}), {unread} verdicts unreadable"
            self.accuracy = right / n
        else:
            assert self.scalar is not None
            known = self.scalar.accuracy
            found = (
                "its accuracy was not measured" if known is None else f"{known:.3f} of its pairs"
            )
            self.accuracy = known or 0.0
        if self.accuracy < self.term.least:
            better = "train it longer, or on more tokens, or compare what it was trained on"
            do = f"{better}; a lower `least` rewards what is often wrong"
            raise EtudeError(
                self.where, f"{self.term.by}: {found}", f"{self.term.least}", do, code=1
            )
        return f"{self.where}: {self.term.by} rewards: {found}"

    def rate(
        self, problems: Sequence[Problem], groups: Groups
    ) -> tuple[list[list[float]], dict[str, float]]:
        """Return the rewards of groups, and figures of the round.

        An attempt without a finished answer is not shown to it: it counts as the worst.
        """
        before = (self.judge.count.asked, self.judge.count.malformed) if self.judge else (0, 0)
        rewards = [self._group(*both) for both in zip(problems, groups, strict=True)]
        figures = compare(self._truths(problems, groups), rewards, groups)
        if self.judge is not None:
            asked, unread = self.judge.count.asked, self.judge.count.malformed
            figures["judge/malformed"] = (unread - before[1]) / max(1, asked - before[0])
        if self.watch.correcting:
            rewards = _recalibrated(rewards, groups)
        return rewards, figures

    def look(
        self, problems: Sequence[Problem], groups: Groups, rewards: Sequence[Sequence[float]]
    ) -> str | None:
        """Watch for a liking for length; return what to say."""
        flat, lengths = _shown(rewards, groups)
        if not flat:
            return None
        truths = [value for row in self._truths(problems, groups) for value in row]
        return self.watch.look(flat, lengths, sum(truths) / len(truths))

    def _group(self, problem: Problem, group: Sequence[Sample]) -> list[float]:
        there = [sample for sample in group if answered(sample)]
        if self.judge is not None:
            values = self.judge.rate(problem.item, [answer(sample) for sample in there])
            worst = self._worst()
        else:
            values = self._scored(problem, there)
            worst = min(values, default=0.0) - 1  # the scale has no end: below the group's others
        found = iter(values)
        return [next(found) if answered(sample) else worst for sample in group]

    def _worst(self) -> float:
        """Return the lowest value of the judge's scale."""
        assert isinstance(self.term, spec.Judge)
        if self.term.mode == "grade":
            return 0.0
        # scores from 1, and 2.5 less where a rank parts equal ones
        return 1 - 2.5 if self.term.mode == "circle" and self.term.verdict == "scores" else -1.0

    def _scored(self, problem: Problem, samples: Sequence[Sample]) -> list[float]:
        assert self.scalar is not None
        if not samples:
            return []
        tools = [tool.schema() for tool in problem.item.toolset()] or None
        how = {"tools": tools, "thinking": problem.environment.thinking}
        return self.scalar.batch([sample.messages for sample in samples], **how)

    def _truths(self, problems: Sequence[Problem], groups: Groups) -> list[list[float]]:
        criterion = self.term.criterion if isinstance(self.term, spec.Judge) else "right"
        return [
            [tasks_judge.truth(problem.item, criterion, answer(s), s.raw >= 1) for s in group]
            for problem, group in zip(problems, groups, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """Return that it was admitted, and what it was seen to do."""
        return {"accuracy": self.accuracy, "watch": self.watch.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.accuracy = state["accuracy"]
        self.watch.restore(state["watch"])


def compare(
    truths: Sequence[Sequence[float]], rewards: Sequence[Sequence[float]], groups: Groups
) -> dict[str, float]:
    """Return how a judge's rewards go with the truth.

    Only answers that it was shown count.

    judge/pairs: pairs of a group's answers of which one is truly better; judge/agree: of those that
    the judge rewards differently, the share in which the better one has more; judge/decided: the
    share of them; judge/bias_length: correlation of length and judged reward.
    """
    pairs = agreed = decided = 0
    for truth, judged, group in zip(truths, rewards, groups, strict=True):
        there = [at for at, sample in enumerate(group) if answered(sample)]
        for a, b in combinations(there, 2):
            if truth[a] == truth[b]:
                continue
            pairs += 1
            gap = (judged[a] - judged[b]) * (1 if truth[a] > truth[b] else -1)
            decided += gap != 0
            agreed += gap > 0
    flat, lengths = _shown(rewards, groups)
    found = {"judge/pairs": float(pairs), "judge/bias_length": correlation(lengths, flat)}
    if pairs:
        found["judge/decided"] = decided / pairs
    if decided:
        found["judge/agree"] = agreed / decided
    return found


def interval(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share; `evals`, which has it too, stands above."""
    share, scale = successes / n, 1 + Z**2 / n
    centre = (share + Z**2 / (2 * n)) / scale
    half = Z * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5 / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def _shown(rewards: Sequence[Sequence[float]], groups: Groups) -> tuple[list[float], list[int]]:
    """Return reward and length of each attempt that the judge has seen."""
    pairs = [
        (value, sample.length)
        for row, group in zip(rewards, groups, strict=True)
        for value, sample in zip(row, group, strict=True)
        if answered(sample)
    ]
    return [value for value, _ in pairs], [length for _, length in pairs]


def _recalibrated(rewards: Sequence[Sequence[float]], groups: Groups) -> list[list[float]]:
    flat = [value for row in rewards for value in row]
    lengths = [sample.length for group in groups for sample in group]
    found = iter(without_length(flat, lengths))
    return [[next(found) for _ in row] for row in rewards]
