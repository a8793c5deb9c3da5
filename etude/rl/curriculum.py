"""Which problems a stage trains on, by how often the current policy solves them.

GLM-4.5 (arXiv:2508.06471, section 3.2) trains first on moderate problems and then on those with
pass@8 = 0 and pass@512 > 0: never solved in a few tries, yet not out of reach. A set of problems is
drawn by seed, tried, and filtered once, before a stage's first step.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from etude.recipe.stages import Rl
from etude.rl.player import Player
from etude.rl.problems import Problem, draw
from etude.rl.sampler import seed_of


@dataclass(frozen=True, slots=True)
class Selection:
    """The problems that passed.

    Args:
        problems: what the stage draws from.
        places: their places in the pool.
        counts: what was measured, for the log.
    """

    problems: list[Problem]
    places: list[int]
    counts: dict[str, float]

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs; the pool itself is drawn again by seed."""
        return {"places": self.places, "counts": self.counts}

    @classmethod
    def restore(cls, spec: Rl, seed: int, state: Mapping[str, Any]) -> "Selection":
        """Return a selection made earlier."""
        pool = _pool(spec, seed)
        places = list(state["places"])
        return cls([pool[place] for place in places], places, dict(state["counts"]))


def select(player: Player, spec: Rl, seed: int, *, say: Callable[[str], None]) -> Selection:
    """Measure the pool and keep what `spec.difficulty` asks for.

    All problems get `k` tries; for `hard`, those without success get `many - k` more. Each
    environment keeps its part of `least`: where fewer pass, its next easier ones join, hardest
    first, and `say` is told. A family that is left out altogether is soon forgotten.
    """
    rule, pool = spec.difficulty, _pool(spec, seed)
    temperature = spec.rollout.temperature
    where = seed_of(seed, "difficulty")
    tried = player.play(pool, where, tries=rule.k, temperature=temperature)
    few = [sum(sample.reward >= 1 for sample in group) for group in tried]
    late = [False] * len(pool)
    if rule.keep == "hard" and rule.many > rule.k:
        unsolved = [place for place, right in enumerate(few) if not right]
        more = player.play(
            [pool[place] for place in unsolved],
            seed_of(where, "more"),
            tries=rule.many - rule.k,
            temperature=temperature,
        )
        for place, group in zip(unsolved, more, strict=True):
            late[place] = any(sample.reward >= 1 for sample in group)
    places, counts = by_environment(pool, few, late, spec)
    told = ", ".join(f"{name.split('/')[1]} {value:g}" for name, value in counts.items())
    say(f"difficulty {rule.keep}: {told}")
    if counts["pool/added"]:
        wanted = len(places) - counts["pool/added"]
        say(
            f"only {wanted:g} problems are {rule.keep} for this policy; {counts['pool/added']:g}"
            f" easier or unsolved ones were added to reach {rule.least}"
        )
    return Selection([pool[place] for place in places], places, counts)


def by_environment(
    pool: list[Problem], few: list[int], late: list[bool], spec: Rl
) -> tuple[list[int], dict[str, float]]:
    """Pick places by their successes, each environment with its part of `least`; see `choose`."""
    rule, whole = spec.difficulty, sum(one.weight for one in spec.environments)
    places: list[int] = []
    counts: Counter[str] = Counter()
    for one in spec.environments:
        own = [p for p, problem in enumerate(pool) if problem.environment is one]
        least = round(rule.least * one.weight / whole)
        found, classes = choose(
            [few[p] for p in own], [late[p] for p in own], rule.k, rule.keep, least
        )
        places += [own[p] for p in found]
        counts.update(classes)
    return sorted(places), dict(counts)


def choose(
    few: list[int], late: list[bool], k: int, keep: str, least: int
) -> tuple[list[int], dict[str, float]]:
    """Pick places by their successes.

    Args:
        few: successes in the first `k` tries.
        late: whether further tries had one.
        k: number of first tries.
        keep: `moderate` or `hard`.
        least: how many must remain.

    Returns:
        The places in order, and counts by class: never solved, hard, moderate, easy, kept, added.
    """
    hard = [p for p, right in enumerate(few) if right == 0 and late[p]]
    moderate = sorted((p for p, right in enumerate(few) if 0 < right < k), key=lambda p: few[p])
    easy = [p for p, right in enumerate(few) if right == k]
    never = [p for p, right in enumerate(few) if right == 0 and not late[p]]
    ranks = [hard, moderate, easy, never] if keep == "hard" else [moderate, easy, never]
    wanted, rest = ranks[0], [p for rank in ranks[1:] for p in rank]
    added = rest[: max(0, min(least, len(few)) - len(wanted))]
    sizes = {"never": never, "hard": hard, "moderate": moderate, "easy": easy, "added": added}
    counts = {f"pool/{name}": float(len(places)) for name, places in sizes.items()}
    chosen = sorted(wanted + added)
    return chosen, counts | {"pool/kept": float(len(chosen))}


def _pool(spec: Rl, seed: int) -> list[Problem]:
    return draw(spec.environments, spec.difficulty.pool, seed_of(seed, "pool"))
