"""What one round of sampling plays: problems drawn by number, tries at each, and what is left over.

A round is a function of its number, the weights and the temperature, so that a resumed run plays
the same one again.
"""

import asyncio
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from etude.recipe.rewards import Judge, Scalar
from etude.recipe.stages import Rl
from etude.rl.attempt import Attempt
from etude.rl.curriculum import Selection
from etude.rl.curriculum_pace import Pace
from etude.rl.curriculum_pace import problems as at_pace
from etude.rl.frozen import freeze, thaw
from etude.rl.player import Player
from etude.rl.problems import Problem
from etude.rl.sample import Sample
from etude.rl.sampler import seed_of

Draw = tuple[int, int, int]  # round, how often problems had been drawn in it before, and place


@dataclass(slots=True)
class Group:
    """All tries at one problem.

    Args:
        problem: what was tried.
        draw, pace: by which the problem is found again.
        samples: the tries.
        useful: it is trained on, unless nothing in it has an advantage.
    """

    problem: Problem
    draw: Draw
    pace: Pace
    samples: list[Sample]
    useful: bool = True

    @property
    def flat(self) -> bool:
        """Whether the environment gave all tries the same reward."""
        return len({sample.raw for sample in self.samples}) == 1

    @property
    def oldest(self) -> int:
        """Version of the oldest weights behind its tokens."""
        return min(sample.oldest for sample in self.samples)


@dataclass(slots=True)
class Round:
    """What was played, in the order of the draw.

    Args:
        number: of the round.
        temperature: of sampling.
        groups: all of them.
        seen: figures about the sampling.
    """

    number: int
    temperature: float
    groups: list[Group]
    seen: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Pending:
    """Tries at one problem that are not all over."""

    problem: Problem
    draw: Draw
    pace: Pace
    attempts: list[Attempt]


class Rounds:
    """Plays rounds.

    Args:
        player: plays attempts.
        spec: the stage.
        seed: of problems and sampling.

    Attributes:
        kept: the problems that a difficulty filter left; None = all that can be drawn.
        pending: attempts that go on in the next round.
    """

    def __init__(self, player: Player, spec: Rl, seed: int):
        self.player, self.spec, self.seed = player, spec, seed
        self.kept: Selection | None = None
        self.pending: list[Pending] = []
        models = [term for term in spec.rewards if isinstance(term, Judge | Scalar)]
        names = [one.name for one in spec.environments]
        self.judged = {name for term in models for name in term.only or names}

    def play(self, number: int, pace: Pace) -> Round:
        """Play one round with the sampler's weights.

        Args:
            number: of the round.
            pace: its temperature is given; what else it says stands for the recipe's words.
        """
        if self.spec.rollout.partial:
            return self._parts(number, pace)
        dynamic, wanted = self.spec.rollout.dynamic, self.spec.rollout.prompts
        groups = self._draw(number, 0, wanted, pace)
        played = Round(number, pace.temperature or 0.0, groups)
        if dynamic is None:
            return played
        rounds = 1
        while (missing := wanted - sum(map(self._signal, played.groups))) > 0:
            if rounds == dynamic.rounds:
                break
            share = 1 - missing / wanted
            count = min(wanted, math.ceil(missing / max(share, 1 / wanted)))
            played.groups += self._draw(number, rounds, count, pace)
            rounds += 1
        for group in played.groups:
            group.useful = self._signal(group) and wanted > 0
            wanted -= group.useful
        kept = sum(map(self._signal, played.groups)) / len(played.groups)
        played.seen = {"dynamic_rounds": float(rounds), "dynamic_kept": kept}
        return played

    def _signal(self, group: Group) -> bool:
        """Say whether a group is kept; one that a model will reward is, for it has not spoken."""
        return not group.flat or group.problem.environment.name in self.judged

    def problems(self, number: int, part: int, count: int, pace: Pace) -> list[Problem]:
        """Draw problems of a round; those of a larger count begin alike."""
        if self.kept is None:
            more = (part,) if part else ()
            seed = seed_of(self.seed, "problems", number, *more)
            return at_pace(self.spec.environments, pace, count, seed)
        pool, prompts = self.kept.problems, self.spec.rollout.prompts
        if part:
            rng = random.Random(seed_of(self.seed, "order", number, part))
            return [pool[rng.randrange(len(pool))] for _ in range(count)]
        found = []
        for place in range(number * prompts, number * prompts + count):
            turn, at = divmod(place, len(pool))
            order = list(range(len(pool)))
            random.Random(seed_of(self.seed, "order", turn)).shuffle(order)
            found.append(pool[order[at]])
        return found

    def state(self) -> list[dict[str, Any]]:
        """Return the pending attempts as JSON."""
        return [
            {
                "draw": list(one.draw),
                "pace": asdict(one.pace),
                "attempts": [
                    {"sample": freeze(a.sample), "turn": a.turn, "over": a.over}
                    for a in one.attempts
                ],
            }
            for one in self.pending
        ]

    def restore(self, state: Iterable[Mapping[str, Any]]) -> int:
        """Go back to pending attempts: their environments are stepped through the same turns.

        Returns:
            How many could not be: their environment now says something else. They begin anew.
        """
        self.pending, lost = [], 0
        for kept in state:
            (number, part, place), pace = kept["draw"], _pace(kept["pace"])
            problem = self.problems(number, part, place + 1, pace)[place]
            again = problem, self._seed(number, part), place
            attempts = self.player.attempts(*again, tries=len(kept["attempts"]))
            for t, row in enumerate(kept["attempts"]):
                attempts[t].turn, attempts[t].over = list(row["turn"]), row["over"]
                sample, dialogue = thaw(row["sample"]), self.player.dialogue
                if sample.ids and not asyncio.run(attempts[t].replay(sample, dialogue)):
                    [attempts[t]] = self.player.attempts(*again, tries=1, first=t)
                    lost += 1
            self.pending.append(Pending(problem, (number, part, place), pace, attempts))
        return lost

    def _draw(self, number: int, part: int, count: int, pace: Pace) -> list[Group]:
        problems, seed = self.problems(number, part, count, pace), self._seed(number, part)
        tries = self.spec.rollout.per_prompt
        how = {"temperature": pace.temperature or 0.0, "max_tokens": pace.max_tokens}
        groups = self.player.play(problems, seed, tries=tries, **how)
        pairs = enumerate(zip(problems, groups, strict=True))
        return [Group(problem, (number, part, p), pace, group) for p, (problem, group) in pairs]

    def _parts(self, number: int, pace: Pace) -> Round:
        """Let what is pending go on, and fill up with new problems; return those that are over."""
        rollout = self.spec.rollout
        count = rollout.prompts - len(self.pending)
        for place, problem in enumerate(self.problems(number, 0, count, pace)):
            how = {"tries": rollout.per_prompt}
            attempts = self.player.attempts(problem, self._seed(number, 0), place, **how)
            self.pending.append(Pending(problem, (number, 0, place), pace, attempts))
        groups = [one.attempts for one in self.pending]
        how = {"budget": rollout.partial, "max_tokens": pace.max_tokens}
        self.player.run(groups, pace.temperature or 0.0, **how)
        over = [one for one in self.pending if all(attempt.over for attempt in one.attempts)]
        self.pending = [one for one in self.pending if one not in over]
        rest = sum(not attempt.over for one in self.pending for attempt in one.attempts)
        found = [
            Group(one.problem, one.draw, one.pace, [a.sample for a in one.attempts]) for one in over
        ]
        seen = {"pending_groups": float(len(self.pending)), "pending": float(rest)}
        return Round(number, pace.temperature or 0.0, found, seen)

    def _seed(self, number: int, part: int) -> int:
        return seed_of(self.seed, "round", number, *((part,) if part else ()))


def freeze_group(group: Group) -> dict[str, Any]:
    """Return a group as JSON."""
    samples = [freeze(sample) for sample in group.samples]
    about = {"draw": list(group.draw), "pace": asdict(group.pace), "useful": group.useful}
    return about | {"samples": samples}


def thaw_group(kept: Mapping[str, Any], rounds: Rounds) -> Group:
    """Return a group that was frozen; its problem is drawn again."""
    (number, part, place), pace = kept["draw"], _pace(kept["pace"])
    problem = rounds.problems(number, part, place + 1, pace)[place]
    samples = [thaw(row) for row in kept["samples"]]
    return Group(problem, (number, part, place), pace, samples, kept["useful"])


def _pace(kept: Mapping[str, Any]) -> Pace:
    """A pace from JSON, whose keys are strings."""
    pace = Pace(**kept)
    if pace.levels is None:
        return pace
    levels = {name: {int(n): w for n, w in own.items()} for name, own in pace.levels.items()}
    return replace(pace, levels=levels)
