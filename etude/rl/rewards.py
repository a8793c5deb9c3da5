"""From what environments pay to what trains: a stage's reward terms, applied to a round.

Of each attempt `raw` is what counts for being solved, `terms` are the parts by name, and `reward`
is their sum. A model that rewards comes first and takes the place of the environment's reward; the
others are added in the order of the recipe. An attempt whose reward cannot be had has failed, is
counted by the term that failed, and gets 0; the run goes on.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from etude.errors import EtudeError, closest
from etude.parallel.mesh import Ranks
from etude.recipe import rewards as spec
from etude.recipe.parts import Environment
from etude.recipe.stages import Rl
from etude.rl.judge import Lesson, lessons
from etude.rl.judge_terms import Judged, Models
from etude.rl.player import ALONE
from etude.rl.problems import Problem
from etude.rl.reward_function import Functions
from etude.rl.rollout import Sample
from etude.rl.shaping import Moment, Toggle, shape

Group = Sequence[Sample]


class Rewards:
    """A stage's terms, and what they remember.

    Args:
        stage: its rewards, environments and rounds.
        models: where models that reward come from.
        seed: of what measures them.
        count: number of tokens of a text.
        say: told of a judge's accuracy, and of its liking for length.
        ranks: the first rewards for all, so that no clock or rounding parts them.

    Raises:
        EtudeError: a term for an environment that the stage has not, a judge of the policy itself
            where the policy is sampling at that time, or a function that cannot be imported.
    """

    def __init__(
        self,
        stage: Rl,
        models: Models,
        seed: int,
        *,
        count: Callable[[str], int],
        say: Callable[[str], None],
        ranks: Ranks = ALONE,
    ):
        self.stage, self.count, self.say, self.ranks = stage, count, say, ranks
        self.judged: dict[int, Judged] = {}
        self.toggles: dict[int, Toggle] = {}
        calls = {t.call: t.seconds for t in stage.rewards if isinstance(t, spec.Function)}
        self.functions = Functions(calls)
        self.lessons: list[tuple[float, list[Lesson]]] = []  # weight and what is learnt, of a round
        for at, term in enumerate(stage.rewards):
            where = f"{stage.name or 'rl'}.rewards.{at}"
            own = _environments(term, stage.environments, where)
            if isinstance(term, spec.Toggle):
                self.toggles[at] = Toggle(term)
            if isinstance(term, spec.Judge) and term.by == "self" and stage.rollout.mode != "sync":
                found = f"the policy as a judge, with rollout.mode {stage.rollout.mode}"
                do = "name a stage under `by`: here the policy samples while answers are judged"
                raise EtudeError(f"{where}.by", found, "mode sync", do)
            if isinstance(term, spec.Judge | spec.Scalar):
                if stage.rollout.dynamic and len(own) == len(stage.environments):
                    found = "a model that rewards all environments, with rollout.dynamic"
                    do = "drop one of them: groups are chosen before it has rewarded them"
                    raise EtudeError(where, found, do=do)
                self.judged[at] = Judged(term, where, models, own, seed)

    def state(self) -> dict[str, Any]:
        """Return what the terms remember, as JSON."""
        kept = self.judged | self.toggles
        return {str(at): one.state() for at, one in kept.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        for at, one in (self.judged | self.toggles).items():
            one.restore(state[str(at)])

    def close(self) -> None:
        """End the functions' processes."""
        self.functions.close()


def apply(
    terms: Rewards,
    problems: Sequence[Problem],
    groups: Sequence[Group],
    *,
    round: int,
    length: int,
) -> dict[str, float]:
    """Fill `reward`, `raw` and `terms` of all attempts of a round.

    Without terms rewards stay as they are, save those that are no finite numbers.

    Args:
        terms: of the stage.
        problems: what was tried.
        groups: the attempts at each.
        round: which.
        length: tokens that a turn may have now.

    Returns:
        Figures: `term/NAME`, the mean of a term over the attempts it applies to; `reward_failed`,
        attempts without a reward; and what `judge_terms.compare` says of each judge.

    Raises:
        EtudeError: a judge is not good enough to reward.
    """
    if not terms.stage.rewards:
        return _Round(terms, problems, groups, round, length).finish()
    if terms.ranks.world == 1:
        return _Round(terms, problems, groups, round, length).run()
    told: list[Any] = [None]
    if terms.ranks.main:
        try:
            figures = _Round(terms, problems, groups, round, length).run()
            told = [(figures, _given(groups), terms.state())]
        except EtudeError as error:  # all ranks end with it
            told = [error]
    dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], EtudeError):
        raise told[0]
    figures, given, state = told[0]
    _take(groups, given)
    terms.restore(state)
    return figures


class _Round:
    """The terms of one round."""

    def __init__(
        self,
        terms: Rewards,
        problems: Sequence[Problem],
        groups: Sequence[Group],
        round: int,
        length: int,
    ):
        self.terms, self.problems, self.groups = terms, problems, groups
        self.now = Moment(round, terms.stage.steps, length, terms.count)
        self.failures: Counter[str] = Counter()
        self.figures: dict[str, float] = {}
        for group in groups:
            for sample in group:
                if not math.isfinite(sample.raw):
                    self._fail(sample, "environment", f"a reward of {sample.raw}")

    def run(self) -> dict[str, float]:
        """Apply every term, models first."""
        stage = self.terms.stage.rewards
        places = range(len(stage))
        for group in self.groups:
            for sample in group:
                sample.terms = {"rule": sample.raw}
        for at in sorted(places, key=lambda at: at not in self.terms.judged):
            term = stage[at]
            chosen = [
                g
                for g, p in enumerate(self.problems)
                if not term.only or p.environment.name in term.only
            ]
            if chosen:
                self._term(at, term, chosen)
        self._teach()
        return self.finish()

    def finish(self) -> dict[str, float]:
        """Return the figures, failures among them."""
        if self.failures:
            self.figures["reward_failed"] = float(sum(self.failures.values()))
            told = ", ".join(f"{name} {count}" for name, count in self.failures.items())
            self.terms.say(f"attempts without a reward: {told}")
        return self.figures

    def _term(self, at: int, term: spec.Term, chosen: Sequence[int]) -> None:
        name = _name(self.terms.stage.rewards, at)
        if at in self.terms.judged:
            values = self._judge(at, term, chosen)
        else:
            values = [self._added(at, term, name, g) for g in chosen]
        for g, row in zip(chosen, values, strict=True):
            for sample, value in zip(self.groups[g], row, strict=True):
                if sample.status == "failed":
                    continue
                if not math.isfinite(value):
                    self._fail(sample, name, f"a reward of {value}")
                    continue
                if at in self.terms.judged:
                    sample.terms.pop("rule", None)
                    sample.raw = value
                sample.terms[name] = value
                sample.reward = sum(sample.terms.values())
        flat = [value for row in values for value in row if math.isfinite(value)]
        self.figures[f"term/{name}"] = sum(flat) / max(1, len(flat))

    def _added(self, at: int, term: spec.Term, name: str, g: int) -> list[float]:
        problem, group = self.problems[g], self.groups[g]
        if at in self.terms.toggles:
            return self.terms.toggles[at].add(self.now.round, problem, group)
        if isinstance(term, spec.Function):
            return [self._called(term, name, problem, sample) for sample in group]
        return shape(term, problem, group, self.now)

    def _called(self, term: spec.Function, name: str, problem: Problem, sample: Sample) -> float:
        if sample.status == "failed":
            return 0.0
        value, why = self.terms.functions.call(term.call, problem, sample)
        if why:
            self._fail(sample, name, why)
        return term.weight * value

    def _judge(self, at: int, term: spec.Term, chosen: Sequence[int]) -> list[list[float]]:
        judged = self.terms.judged[at]
        if told := judged.admit():
            self.terms.say(told)
            self.figures["judge/accuracy"] = judged.accuracy or 0.0
        problems = [self.problems[g] for g in chosen]
        groups = [self.groups[g] for g in chosen]
        values, figures = judged.rate(problems, groups)
        self.figures |= figures
        if told := judged.look(problems, groups, values):
            self.terms.say(told)
        self.figures["judge/alarms"] = float(judged.watch.alarms)
        for group in groups:
            for sample in group:  # the log and the record keep the truth
                sample.info["truth"] = sample.raw
        return [[term.weight * value for value in row] for row in values]

    def _teach(self) -> None:
        """Collect what the policy learns as its own judge: attempts that rules have verified."""
        self.terms.lessons = []
        for judged in self.terms.judged.values():
            term = judged.term
            if isinstance(term, spec.Judge) and term.refresh:
                names = {one.name for one in judged.environments}
                ruled = [
                    (problem.item, group)
                    for problem, group in zip(self.problems, self.groups, strict=True)
                    if problem.environment.name not in names
                ]
                found = lessons(ruled, term.lessons)
                self.terms.lessons.append((term.refresh, found))
                self.figures["judge/lessons"] = float(len(found))

    def _fail(self, sample: Sample, name: str, why: str) -> None:
        self.failures[name] += 1
        sample.end("failed", error=f"{name}: {why}")
        sample.terms = {}


def _environments(
    term: spec.Term, environments: Sequence[Environment], where: str
) -> list[Environment]:
    names = [one.name for one in environments]
    for name in term.only:
        if name not in names:
            known = ", ".join(names)
            raise EtudeError(f"{where}.for", f"no environment {name}", known, closest(name, names))
    return [one for one in environments if not term.only or one.name in term.only]


def _name(terms: Sequence[Any], at: int) -> str:
    """Return a term's kind, with its number among those of its kind from the second on."""
    before = sum(other.kind == terms[at].kind for other in terms[:at])
    return terms[at].kind + (f"_{before + 1}" if before else "")


def _given(groups: Sequence[Group]) -> list[list[tuple[Any, ...]]]:
    return [[(s.reward, s.raw, s.terms, s.status, s.info) for s in group] for group in groups]


def _take(groups: Sequence[Group], given: Sequence[Sequence[tuple[Any, ...]]]) -> None:
    for group, rows in zip(groups, given, strict=True):
        for sample, row in zip(group, rows, strict=True):
            sample.reward, sample.raw, sample.terms, sample.status, sample.info = row
