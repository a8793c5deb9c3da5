"""Objectives side by side: `python -m etude.bench.race`.

PPO, GRPO, DAPO, GSPO and CISPO train from one warm start on the same tasks, with 16 updates per set
of rollouts, as in the comparison of MiniMax-M1 (arXiv:2506.13585, section 3.1), and with 1. Each
gets three learning rates and two clip widths of its own scale; validation questions choose on one
seed, other questions are reported over all. Then the same warm start is taught to take wrong steps
back with `wait`, and what each objective leaves of that word's gradient is counted. What has been
run is not run again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from etude.bench.race_arm import Arm, Result, Size, prepare, work
from etude.bench.race_picture import fork_picture, race_picture
from etude.bench.race_table import fork_table, race_table, summary
from etude.files import atomic, write_json

UPDATES = (16, 1)
RATES = {16: (3e-5, 1e-4, 3e-4), 1: (1e-4, 3e-4, 1e-3)}  # 16 steps on a round go farther than one
CRITIC = "critic: {minibatches: 8}"  # our choice, with 16 updates and with 1
# two of each, the usual one first; the other is wider where tokens are dropped, so clipping has its
# fairest chance, and tighter where none is
WIDTHS = {
    "ppo": tuple(f"clip_low: {w}, clip_high: {w}, {CRITIC}" for w in (0.2, 0.4)),
    "grpo": tuple(
        f"clip_low: {w}, clip_high: {w}, aggregate: sequence, eps: 1e-4" for w in (0.2, 0.4)
    ),
    "dapo": ("clip_low: 0.2, clip_high: 0.28", "clip_low: 0.4, clip_high: 0.56"),
    "gspo": ("clip_low: 3e-4, clip_high: 4e-4", "clip_low: 3e-2, clip_high: 4e-2"),
    "cispo": ("weight_max: 5", "weight_max: 2"),
}
FORK_KINDS = ("grpo", "dapo", "cispo")  # those of the report's comparison
FORK_RATE = 1e-4  # one for all; written steps want a smaller one than short answers
FORK_WIDTH = 0  # the published one
QUICK = Size(
    rounds=2,
    every=1,
    validation=4,
    test=4,
    settings=2,
    more=("warm.tokens=12k", "rl.rollout.prompts=16", "rl.rollout.per_prompt=2"),
)
Each = Callable[[Sequence[Arm]], list[Result]]


def sweep(objective: str, updates: int, seed: int = 0) -> list[Arm]:
    """Return the arms among which an objective's setting is chosen."""
    return [
        Arm(objective, fields, updates, rate, seed)
        for rate in RATES[updates]
        for fields in WIDTHS[objective]
    ]


def best(results: Sequence[Result]) -> Result:
    """Return the one that validation questions prefer; the first of equals."""
    return max(results, key=lambda result: result.chosen_by)


def race(
    each: Each, seeds: int, settings: int | None = None
) -> dict[tuple[str, int], list[Result]]:
    """Sweep every objective on the first seed, and repeat the best setting on the others.

    Args:
        each: runs arms.
        seeds: in all.
        settings: of each sweep that are tried; None = all six.

    Returns:
        One result per seed, by objective and updates.
    """
    places = [(objective, updates) for updates in UPDATES for objective in WIDTHS]
    swept = each([arm for place in places for arm in sweep(*place)[:settings]])
    found = {
        place: [best([one for one in swept if (one.arm.objective, one.arm.updates) == place])]
        for place in places
    }
    more = [
        Arm(chosen.arm.objective, chosen.arm.fields, chosen.arm.updates, chosen.arm.rate, seed)
        for [chosen] in found.values()
        for seed in range(1, seeds)
    ]
    for one in each(more):
        found[one.arm.objective, one.arm.updates].append(one)
    return found


def fork(each: Each, seeds: int) -> dict[str, list[Result]]:
    """Train on written steps, of which some turn back with a word, under 16 updates."""
    arms = [
        Arm(kind, WIDTHS[kind][FORK_WIDTH], UPDATES[0], FORK_RATE, seed, fork=True)
        for kind in FORK_KINDS
        for seed in range(seeds)
    ]
    found = each(arms)
    return {kind: [one for one in found if one.arm.objective == kind] for kind in FORK_KINDS}


def run(home: Path, *, seeds: int = 3, workers: int = 2, size: Size | None = None) -> None:
    """Run everything, print the tables, and leave `race.json`, `race.svg` and `fork.svg`.

    Args:
        home: folder of all runs.
        seeds: of the best settings and of the experiment with words; the sweep has one.
        workers: arms at a time, one thread each.
        size: None = the full race.
    """
    size = size or Size()
    with _pool(home, seeds, workers, size) as each:
        found = race(each, seeds, size.settings)
        print(race_table(found), flush=True)
        _write(home / "race.svg", race_picture(found))
        words = fork(each, seeds)
        print(fork_table(words), flush=True)
        _write(home / "fork.svg", fork_picture(words))
    about = {"seeds": seeds, "size": asdict(size)}
    write_json(home / "race.json", about | summary(found, words))


@contextmanager
def _pool(home: Path, seeds: int, workers: int, size: Size) -> Iterator[Each]:
    """Yield what runs arms side by side, once their warm starts are there."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            starts = [(seed, fork) for fork in (False, True) for seed in range(seeds)]
            asked = [pool.submit(prepare, str(home), seed, size, fork) for seed, fork in starts]
            for n, start in enumerate(asked, start=1):
                start.result()
                _tell(f"{n}/{len(asked)} warm starts")
            yield lambda arms: _each(pool, home, arms, size)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _each(pool: Executor, home: Path, arms: Sequence[Arm], size: Size) -> list[Result]:
    began = time.monotonic()
    asked = {pool.submit(work, str(home), arm, size): n for n, arm in enumerate(arms)}
    found: dict[int, Result] = {}
    for future in as_completed(asked):
        result = found[asked[future]] = future.result()
        left = (time.monotonic() - began) / len(found) * (len(arms) - len(found))
        share = [sum(point.test.values()) / len(point.test) for point in result.points]
        _tell(
            f"{len(found)}/{len(arms)} {result.arm.name}: {share[0]:.3f} -> {share[-1]:.3f}, "
            f"{result.seconds:.0f} s, {left / 60:.0f} min left"
        )
    return [found[n] for n in range(len(arms))]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(path: Path, text: str) -> None:
    with atomic(path, "w") as file:
        file.write(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m etude.bench.race", description=__doc__)
    parser.add_argument("folder", nargs="?", default="runs/race", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="arms at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="tiny arms, to see that all works")
    said: Any = parser.parse_args(arguments)
    size = QUICK if said.quick else None
    run(said.folder, seeds=said.seeds, workers=said.workers, size=size)


if __name__ == "__main__":
    main()
