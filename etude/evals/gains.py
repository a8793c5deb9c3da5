"""What one stage adds over another, and thinking over not: differences inside each seed.

Which stages to compare follows from the recipe's graph: each with the nearest measured stage it was
trained from, and an RL stage also with its controls, the other measured stages trained from there
(more fine-tuning of equal tokens; moderate problems instead of hard ones), and with the fine-tuning
before all RL.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etude.evals.figures import Figures, Key, over_seeds
from etude.evals.stats import Estimate
from etude.recipe.stages import Eval, Recipe, Rl, Trained

ANSWERS = ("greedy", "sampled", "valid", "exact")


class Pair(NamedTuple):
    """Two measured stages.

    Attributes:
        after, before: their names.
        tasks: families to compare; None is all of them.
        metrics: what to compare.
    """

    after: str
    before: str
    tasks: frozenset[str] | None
    metrics: tuple[str, ...]


class Gain(NamedTuple):
    """One difference."""

    label: str
    key: Key
    estimate: Estimate


def pairs(recipe: Recipe, measured: Sequence[str]) -> list[Pair]:
    """Return the comparisons that a recipe's graph suggests among the measured stages."""
    trained = [stage for stage in recipe.stages if not isinstance(stage, Eval)]
    starts = {stage.name: stage.start or "model" for stage in trained}
    shown = [stage for stage in trained if stage.name in measured]
    bases = {stage.name: _base(stage.name, starts, measured) for stage in shown}
    found = []
    for place, stage in enumerate(shown):
        base = bases[stage.name]
        if base:
            found.append(_pair(stage, base))
        if isinstance(stage, Rl):
            others = shown[:place] + shown[place + 1 :]
            found += [
                _pair(stage, other.name)
                for other in others
                if bases[other.name] == base and _controls(stage, other)
            ]
            found += _over_cold_start(stage, base, shown, bases)
    return found


def _over_cold_start(
    stage: Rl, base: str | None, shown: Sequence[Trained], bases: Mapping[str, str | None]
) -> list[Pair]:
    """Compare RL that follows other RL with the fine-tuning before all of it, and more of that."""
    by_name = {one.name: one for one in shown}
    if not isinstance(by_name.get(base or ""), Rl):
        return []  # the comparisons above are with it already
    while base is not None and isinstance(by_name[base], Rl):
        base = bases[base]
    more = [one.name for one in shown if bases[one.name] == base and not isinstance(one, Rl)]
    return [_pair(stage, name) for name in ([base] if base else []) + more]


def gains(runs: Mapping[str, Figures], wanted: Sequence[Pair]) -> list[Gain]:
    """Return every comparison over all runs; one run gives differences without intervals."""
    every = list(dict.fromkeys(key for run in runs.values() for key in run.rows))
    found = [*_between(runs, every, wanted), *_thinking(runs, every), *_examples(runs, every)]
    return list(found)


def _between(
    runs: Mapping[str, Figures], every: Sequence[Key], wanted: Sequence[Pair]
) -> Iterator[Gain]:
    for after, before, tasks, metrics in wanted:
        for key in every:
            if key.metric in metrics and (tasks is None or key.task in tasks):
                gain = over_seeds(_less(run, key, after, key, before) for run in runs.values())
                if gain:
                    yield Gain(f"{after} over {before}", key, gain)


def _thinking(runs: Mapping[str, Figures], every: Sequence[Key]) -> Iterator[Gain]:
    """Compare the modes in every stage that was asked in both."""
    first = next(iter(runs.values()))
    for stage in first.columns:
        for key in every:
            other = key._replace(mode="nothink")
            if key.mode == "think" and key.metric in ANSWERS and _known(runs, stage, key, other):
                gain = over_seeds(_less(run, key, stage, other, stage) for run in runs.values())
                if gain:
                    yield Gain(f"{stage}: think over nothink", key, gain)


def _examples(runs: Mapping[str, Figures], every: Sequence[Key]) -> Iterator[Gain]:
    """Compare the most examples in the prompt with none, in every stage that was asked both."""
    asked = [key for key in every if key.column == "few-shot"]
    first = next(iter(runs.values()))
    for stage in first.columns:
        for key in asked:
            others = [k for k in asked if (k.task, k.metric) == (key.task, key.metric)]
            none = key._replace(mode="0-shot")
            most = max(others, key=lambda other: int(other.mode.partition("-")[0]))
            if key == most != none and none in others and _known(runs, stage, key, none):
                gain = over_seeds(_less(run, key, stage, none, stage) for run in runs.values())
                if gain:
                    yield Gain(f"{stage}: examples over none", key, gain)


def _known(runs: Mapping[str, Figures], stage: str, *keys: Key) -> bool:
    """Say whether a stage solves anything in one mode; a model before fine-tuning does not."""
    cells = (run.cell(key, stage) for run in runs.values() for key in keys)
    return any(cell is not None and cell.value > 0 for cell in cells)


def _less(run: Figures, key: Key, after: str, other: Key, before: str) -> Estimate | None:
    first, second = run.cell(key, after), run.cell(other, before)
    if first is None or second is None:
        return None
    # both are asked the same items, so their own intervals do not add up: seeds give one
    return Estimate(first.value - second.value, math.nan, math.nan, first.n)


def _base(name: str, starts: Mapping[str, str], measured: Sequence[str]) -> str | None:
    """Return the nearest measured stage that a stage was trained from."""
    above = starts.get(name)
    while above is not None and above not in measured:
        above = starts.get(above)
    return above


def _controls(stage: Rl, other: Trained) -> bool:
    """Say whether `other` is what `stage` must beat, not the reverse."""
    if isinstance(other, Rl):
        return stage.difficulty.keep == "hard" and other.difficulty.keep != "hard"
    return other.stage == "sft"


def _pair(stage: Trained, before: str) -> Pair:
    if isinstance(stage, Rl):
        tasks = frozenset(environment.name for environment in stage.environments)
        return Pair(stage.name, before, tasks, ANSWERS)
    text = stage.stage in ("pretrain", "midtrain")
    return Pair(stage.name, before, None, ("bpb",) if text else ANSWERS)
