"""What a round is played at, what it was seen to do, and the rules that lead from one to the other.

A rule only knows rounds that are over. Its state is JSON; with it, a resumed stage makes the very
moves that an uninterrupted one makes.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from typing import Any, Protocol

from etude.objectives.reward import percentile
from etude.recipe.parts import Environment
from etude.rl.problems import Problem, draw
from etude.rl.rollout import Sample
from etude.rl.sampler import seed_of

Play = Callable[[Sequence[Problem], int], list[list[Sample]]]  # problems and a seed to attempts


@dataclass(frozen=True, slots=True)
class Pace:
    """How one round is played; None leaves what the recipe says.

    Args:
        temperature: of sampling.
        max_tokens: longest turn.
        weights: share of each environment, by name; 0 leaves it out.
        levels: weight of each level, by environment.
        fixed: each batch has exactly these shares; otherwise they are drawn.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    weights: Mapping[str, float] | None = None
    levels: Mapping[str, Mapping[int, float]] | None = None
    fixed: bool = False

    def over(self, other: "Pace") -> "Pace":
        """Return `other` with all that this one says in its place."""
        own = {name: getattr(self, name) for name in ("temperature", "max_tokens", "weights")}
        levels = dict(other.levels or {}) | dict(self.levels or {})
        said = {name: value for name, value in own.items() if value is not None}
        return replace(other, **said, levels=levels or None, fixed=self.fixed or other.fixed)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a round did.

    Args:
        reward: mean of the environments' own rewards.
        perplexity: exp of the mean -log p of the policy's tokens.
        length: mean tokens of the policy in an attempt.
        top: 99th percentile of the tokens of the longest turns.
        solved: by environment and level, successes and attempts.
    """

    reward: float
    perplexity: float
    length: float
    top: float
    solved: Mapping[tuple[str, int], tuple[int, int]] = field(default_factory=dict)


class Rule(Protocol):
    """One part of a curriculum."""

    def pace(self, round: int) -> Pace:
        """Return how a round is to be played, by what was observed before it."""
        ...

    def observe(self, round: int, seen: Seen) -> str | None:
        """Take in a round that is over; return what to say of a move, if there was one."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that the next moves depend on, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        ...


def see(problems: Sequence[Problem], groups: Sequence[Sequence[Sample]]) -> Seen:
    """Read off a round what rules need to know of it."""
    samples = [sample for group in groups for sample in group]
    tokens = sum(sample.length for sample in samples)
    solved: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for problem, group in zip(problems, groups, strict=True):
        key = problem.environment.name, problem.item.level
        right, tried = solved[key]
        solved[key] = right + sum(s.raw >= 1 for s in group), tried + len(group)
    return Seen(
        reward=sum(sample.raw for sample in samples) / len(samples),
        perplexity=exp(-sum(sum(sample.logp) for sample in samples) / max(tokens, 1)),
        length=tokens / len(samples),
        top=percentile([_longest_turn(sample) for sample in samples], 0.99),
        solved=dict(solved),
    )


def _longest_turn(sample: Sample) -> int:
    """Return the most masked tokens in a row; observations part the turns."""
    most = run = 0
    for own in sample.mask:
        run = run + 1 if own else 0
        most = max(most, run)
    return most


def paced(environments: Sequence[Environment], pace: Pace) -> tuple[Environment, ...]:
    """Return the environments of a round, with the pace's weights and levels in place of theirs."""
    found = []
    for one in environments:
        weight = one.weight if pace.weights is None else pace.weights.get(one.name, 0.0)
        levels = (pace.levels or {}).get(one.name, one.levels)
        if weight > 0:
            kept = {level: share for level, share in levels.items() if share > 0}
            found.append(replace(one, weight=weight, levels=kept))
    return tuple(found)


def problems(
    environments: Sequence[Environment], pace: Pace, count: int, seed: int
) -> list[Problem]:
    """Draw a round's problems at its pace; a larger count begins with those of a smaller one.

    With `fixed`, every environment has its share of them, as exactly as whole numbers allow.
    """
    chosen = paced(environments, pace)
    if not pace.fixed:
        return draw(chosen, count, seed)
    order = turns([one.weight for one in chosen], count)
    drawn = [iter(draw([one], order.count(at), seed_of(seed, at))) for at, one in enumerate(chosen)]
    return [next(drawn[at]) for at in order]


def turns(weights: Sequence[float], count: int) -> list[int]:
    """Return whose turn it is, `count` times: always that of the one furthest behind its share."""
    whole, given = sum(weights), [0] * len(weights)
    order = []
    for place in range(1, count + 1):
        behind = [place * w / whole - n for w, n in zip(weights, given, strict=True)]
        at = behind.index(max(behind))
        given[at] += 1
        order.append(at)
    return order
