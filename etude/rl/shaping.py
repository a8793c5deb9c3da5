"""Reward terms that rules work out, group by group: each returns what it adds to every attempt.

The formulas are in `objectives.reward`; here is what they are asked of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etude.errors import EtudeError
from etude.files import digest
from etude.objectives import reward
from etude.recipe import rewards as spec
from etude.rl.cooling import between
from etude.rl.problems import Problem
from etude.rl.rollout import Sample

Group = Sequence[Sample]
PARL = ("launched", "assigned", "finished")  # what an environment of agents notes


@dataclass(frozen=True, slots=True)
class Moment:
    """What terms know of the round.

    Args:
        round: which.
        rounds: of the stage.
        length: tokens that a turn may have now.
        count: number of tokens of a text.
    """

    round: int
    rounds: int
    length: int
    count: Callable[[str], int]


def shape(term: Any, problem: Problem, group: Group, now: Moment) -> list[float]:
    """Return what a term without memory adds to each attempt of a group."""
    return [term.weight * value for value in RULES[type(term)](term, problem, group, now)]


def _overlong(term: spec.Overlong, _: Problem, group: Group, now: Moment) -> list[float]:
    most = term.length or now.length
    return [reward.overlong(s.length, most=most, cache=term.cache) for s in group]


def _budget(term: spec.Budget, _: Problem, group: Group, now: Moment) -> list[float]:
    return [-float(sample.length > term.tokens) for sample in group]


def _length_aware(term: spec.LengthAware, _: Problem, group: Group, now: Moment) -> list[float]:
    think = [sum(now.count(reply.reasoning) for reply in sample.replies) for sample in group]
    # all that is not reasoning, its marks included, counts as the answer
    answer = [max(0, s.length - t) for s, t in zip(group, think, strict=True)]
    base = [sample.reward for sample in group]
    parts = (think, term.think, term.bonus_think), (answer, term.answer, term.bonus_answer)
    sums = [0.0] * len(group)
    for lengths, own, bonus in parts:
        relative = reward.relative_length(lengths)
        first = reward.shortest_bonus(base, lengths, quantile=term.quantile)
        for at, (w, best) in enumerate(zip(relative, first, strict=True)):
            sums[at] += own * w + bonus * best
    return sums


def _repetition(term: spec.Repetition, _: Problem, group: Group, now: Moment) -> list[float]:
    shares = [reward.repeated(_own(sample), term.tokens) for sample in group]
    return [-share if share > term.allowed else 0.0 for share in shares]


def _format(term: spec.Format, _: Problem, group: Group, now: Moment) -> list[float]:
    return [-float(any(reply.problems for reply in sample.replies)) for sample in group]


def _language(term: spec.LanguageMixing, problem: Problem, group: Group, _: Moment) -> list[float]:
    known = reward.scripts(problem.item.question) | set(term.scripts)
    said = ["".join(r.reasoning + r.content for r in sample.replies) for sample in group]
    return [-float(reward.foreign(text, known) > term.allowed) for text in said]


def _parl(term: spec.Parl, problem: Problem, group: Group, now: Moment) -> list[float]:
    left = 1 - between(now.round, now.rounds, 0.0, term.until)
    weights = term.parallel * left, term.finish * left
    found = []
    for sample in group:
        if sample.status == "failed":
            found.append(0.0)
            continue
        try:
            launched, assigned, finished = (int(sample.info[name]) for name in PARL)
        except KeyError as error:
            where, name = "rewards.parl", problem.environment.name
            missing = f"environment {name} does not say launched, assigned and finished"
            do = "name the environments that do under `for`"
            raise EtudeError(where, missing, do=do) from error
        share = finished / assigned if assigned else 0.0
        found.append(reward.swarm(launched / term.target, share, weights=weights))
    return found


RULES: dict[type, Callable[[Any, Problem, Group, Moment], list[float]]] = {
    spec.Overlong: _overlong,
    spec.Budget: _budget,
    spec.LengthAware: _length_aware,
    spec.Repetition: _repetition,
    spec.Format: _format,
    spec.LanguageMixing: _language,
    spec.Parl: _parl,
}


class Toggle:
    """Budget phases and free phases; remembers each problem's budget once it is measured.

    Source: Kimi K2.5, arXiv:2602.02276, Toggle.
    """

    def __init__(self, term: spec.Toggle):
        self.term = term
        self.budgets: dict[str, float] = {}

    def add(self, round: int, problem: Problem, group: Group) -> list[float]:
        """Return what is taken from each attempt; measure the budget where there is none yet."""
        term, key = self.term, self._key(problem)
        lengths, right = [s.length for s in group], [s.raw >= 1 for s in group]
        if key not in self.budgets:
            solved = [n for n, own in zip(lengths, right, strict=True) if own]
            if solved:
                self.budgets[key] = reward.percentile(solved, term.quantile)
            return [0.0] * len(group)
        if round // term.every % 2:
            return [0.0] * len(group)
        before = [sample.reward for sample in group]
        how = {"least": term.least, "budget": self.budgets[key]}
        after = reward.toggle(before, right, lengths, **how)
        return [new - old for new, old in zip(after, before, strict=True)]

    def _key(self, problem: Problem) -> str:
        item = problem.item
        level = f"{problem.environment.name} {item.level}"
        return level if self.term.by == "level" else digest(level, item.question, str(problem.at))

    def state(self) -> dict[str, Any]:
        """Return the budgets."""
        return {"budgets": dict(self.budgets)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.budgets = dict(state["budgets"])


def _own(sample: Sample) -> list[int]:
    return [id for id, own in zip(sample.ids, sample.mask, strict=True) if own]
