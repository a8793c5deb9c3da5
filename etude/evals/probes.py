"""What a stage can do: held-out problems of one family, asked greedily and by sampling.

Accuracy is reported twice: greedy, and as the mean over samples at temperature 1, as the report of
GLM-4.5 does (section 4); in a small model the two differ by many points.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

from etude.evals.stats import Estimate, mean, over_items, pass_at_k, wilson
from etude.recipe.parts import Environment, Probe
from etude.recipe.stages import Eval
from etude.rl.player import Player
from etude.rl.problems import Problem, draw
from etude.rl.rollout import Sample
from etude.rl.sampler import seed_of

SHOWN = 2  # answers per family, level and mode that people get to read

Row = dict[str, Any]


def ask(
    player: Player, name: str, probe: Probe, spec: Eval, seed: int
) -> Iterator[tuple[list[Row], list[Row]]]:
    """Ask one family's held-out problems at each level and in each mode.

    Stages asked with one seed get the same problems, and all modes and turns the same questions.

    Args:
        player: plays the stage's model.
        name: task family.
        probe: levels, modes, turns, column.
        spec: how many problems and samples.
        seed: of problems and sampling.

    Yields:
        Rows of the table and a few answers, for each level, mode and number of turns; rows carry
        `turns` where the probe has several.
    """
    for level, (thinking, most), turns in product(probe.levels, probe.modes, probe.limits):
        mode = "think" if thinking else "nothink"
        mode = mode if most is None else f"{mode} {most}"
        place: Row = {"column": probe.column, "task": name, "level": level, "mode": mode}
        place |= {"turns": turns} if len(probe.limits) > 1 else {}
        how = Environment(
            name=name,
            levels={level: 1.0},
            thinking=thinking,
            turns=turns,
            knobs=probe.knobs,
            attributes=probe.attributes,
        )
        problems = _different(draw([how], spec.items, seed_of(seed, name, level), held_out=True))
        asked = partial(player.play, problems, seed, thinking=most)
        greedy = [group[0] for group in asked(tries=1, temperature=0.0)]
        sampled = asked(tries=spec.samples) if spec.samples else []
        found = [*_greedy(problems, greedy), *_sampled(sampled, spec.pass_k)]
        rows = [row(place, metric, estimate) for metric, estimate in found]
        pairs = list(zip(problems, greedy, strict=True))[:SHOWN]
        yield rows, [place | _shown(problem, sample) for problem, sample in pairs]


def row(place: Row, metric: str, estimate: Estimate) -> Row:
    """Return one row of the table; an unknown bound is None."""
    value, low, high = (
        None if number != number else number
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return place | {"metric": metric, "value": value, "low": low, "high": high, "n": estimate.n}


def _greedy(
    problems: Sequence[Problem], samples: Sequence[Sample]
) -> Iterator[tuple[str, Estimate]]:
    yield "greedy", over_items([sample.reward for sample in samples])
    if any(problem.item.calls for problem in problems):
        for metric in ("valid", "exact"):  # of the first turn, where a tool should be called
            yield metric, wilson(sum(bool(s.info.get(metric)) for s in samples), len(samples))


def _sampled(groups: Sequence[Sequence[Sample]], k: int) -> Iterator[tuple[str, Estimate]]:
    if not groups:
        return
    rewards = [[sample.reward for sample in group] for group in groups]
    yield "sampled", over_items([mean(row) for row in rewards])
    k = min(k, len(rewards[0]))
    solved = [sum(reward >= 1 for reward in row) for row in rewards]
    yield f"pass@{k}", over_items([pass_at_k(right, len(rewards[0]), k) for right in solved])


def _different(problems: Sequence[Problem]) -> list[Problem]:
    """Drop repeated questions: a level with few of them has few problems, and says so by its n."""
    return list({problem.item.question: problem for problem in problems}.values())


def _shown(problem: Problem, sample: Sample) -> Row:
    last = sample.replies[-1]
    calls = [call for reply in sample.replies for call in reply.tool_calls]
    return {
        "prompt": problem.item.question,
        "reasoning": last.reasoning,
        "reply": last.content,
        "calls": [f"{call.name}({call.arguments})" for call in calls],
        "answer": problem.item.answer,
        "score": sample.reward,
        "status": sample.status,
    }
