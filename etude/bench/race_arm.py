"""One run of the race: trained from the shared warm start, then measured along the way.

The recipe is `objective_race`; an arm is that recipe with another objective, learning rate, clip
width, number of updates or task. What it leaves is one small file; its checkpoints are deleted.
"""

import json
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from etude.bench.race_fork import Received, received
from etude.evals.stats import mean
from etude.files import atomic_folder, digest, read_json, write_json
from etude.models import table
from etude.models.checkpoint import load as load_model
from etude.recipe.identity import identities
from etude.recipe.load import load
from etude.recipe.stages import Recipe, Rl
from etude.rl.dialogue import Dialogue
from etude.rl.local import LocalSampler
from etude.rl.player import Player
from etude.rl.problems import draw
from etude.rl.toolbox import Toolbox
from etude.run import train

RECIPE = "objective_race"
PROBLEMS = 20261  # seed of the held-out problems: the same for every arm
FORK = (  # another task for the same recipe: written steps, of which some are wrong and taken back
    "warm.data={tasks: {sum: {weight: 1, levels: {0: 0.5, 1: 0.5}, thinking: 1, reflect: 0.3}},"
    " items: 12000, length: 96}",
    "warm.tokens=250k",
    "rl.environments=[{name: sum, levels: {1: 1}, weight: 1, thinking: true}]",
    "rl.rollout.max_tokens=64",
    "rl.rollout.record={groups: all, attempts: all, size_mb: 256}",
)


@dataclass(frozen=True, slots=True)
class Size:
    """How large the race is.

    Attributes:
        rounds: of rollouts in an arm.
        every: rounds between two measurements; divides `rounds`.
        validation, test: held-out problems of each task that choose a setting, and that are
            reported.
        settings: that each objective tries; None = all of its sweep.
        more: overrides of the recipe.
    """

    rounds: int = 24
    every: int = 6
    validation: int = 128
    test: int = 256
    settings: int | None = None
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arm:
    """One run.

    Attributes:
        objective: its kind.
        fields: its other fields, as YAML writes them: clip widths, and what is the same in all its
            arms.
        updates: optimizer steps per set of rollouts.
        rate: learning rate.
        seed: of weights, warm start and rollouts.
        fork: written steps with `wait` in the place of short answers.
    """

    objective: str
    fields: str
    updates: int
    rate: float
    seed: int
    fork: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        kind = "fork" if self.fork else "race"
        tail = digest(self.fields)[:4]
        return f"{kind}-{self.objective}-u{self.updates}-r{self.rate:g}-{tail}-s{self.seed}"

    def overrides(self, size: Size) -> list[str]:
        """Return the recipe's changes."""
        return [
            f"seed={self.seed}",
            *(FORK if self.fork else ()),
            f"rl.objective={{kind: {self.objective}, {self.fields}}}",
            f"rl.optimizer.learning_rate={self.rate}",
            f"rl.rollout.updates={self.updates}",
            f"rl.steps={size.rounds}",
            f"rl.keep_every={size.every * self.updates}",
            *size.more,
        ]


@dataclass(frozen=True, slots=True)
class Point:
    """What an arm could do at one time.

    Attributes:
        round: rounds of rollouts before.
        tokens: sampled for training until then.
        validation, test: share of right answers at temperature 1, by task.
    """

    round: int
    tokens: float
    validation: dict[str, float]
    test: dict[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """What an arm left.

    Attributes:
        arm: which.
        points: from the warm start on.
        entropy: of the sampled tokens, in nats, by round.
        clipped: share of trained tokens that a clip silenced or bounded, by optimizer step.
        seconds: of the processor that training and measuring took, in the process that ended them.
        received: gradient by kind of token, by round; of arms with written steps only.
    """

    arm: Arm
    points: list[Point]
    entropy: list[float]
    clipped: list[float]
    seconds: float
    received: list[Received]

    @property
    def chosen_by(self) -> float:
        """Validation accuracy, over tasks and over all measurements behind the start.

        The whole curve and not its end: it says how fast an arm learns, and is less noisy.
        """
        return mean([mean(list(point.validation.values())) for point in self.points[1:]])


def warm(home: Path, seed: int, size: Size, *, fork: bool = False) -> tuple[Path, Point]:
    """Train and measure the start that all arms of a seed share, unless it has been.

    Returns:
        Its run folder, and what it can do.
    """
    folder = home / "warm" / f"{'fork' if fork else 'race'}-s{seed}"
    how = [f"seed={seed}", *(FORK if fork else ()), *size.more]
    recipe = load(RECIPE, how)
    kept, key = folder.with_suffix(".json"), digest(identities(recipe)["warm"], *_asked(size))
    if not kept.exists() or read_json(kept)["key"] != key:  # else not touched: arms copy it
        _quietly(folder.with_suffix(".log"), how, folder, until="warm")
        found = accuracy(folder / "stages/warm/checkpoint", _rl(recipe), size)
        write_json(kept, {"key": key, "point": asdict(Point(0, 0.0, *found))})
    return folder, Point(**read_json(kept)["point"])


def run(home: Path, arm: Arm, size: Size) -> Result:
    """Train and measure an arm, unless it has been; a stopped one goes on."""
    kept = home / "arms" / f"{arm.name}.json"
    overrides = arm.overrides(size)
    recipe = load(RECIPE, overrides)
    key = digest(identities(recipe)["rl"], *_asked(size))
    if kept.exists() and (found := read_json(kept))["key"] == key:
        return result(found)
    start, first = warm(home, arm.seed, size, fork=arm.fork)
    folder = home / "arms" / arm.name
    if not folder.exists():
        with atomic_folder(folder) as copy:
            shutil.copytree(start, copy, dirs_exist_ok=True)
    began = time.process_time()
    _quietly(folder.parent / f"{arm.name}.log", overrides, folder)
    points, entropy, clipped, got = _read(folder, arm, _rl(recipe), size)
    seconds = round(time.process_time() - began, 1)
    found = Result(arm, [first, *points], entropy, clipped, seconds, got)
    write_json(kept, {"key": key} | asdict(found))
    shutil.rmtree(folder)
    return found


def result(kept: dict[str, Any]) -> Result:
    """Return an arm's result from its file."""
    parts = {
        "arm": Arm(**kept["arm"]),
        "points": [Point(**point) for point in kept["points"]],
        "received": [Received(**one) for one in kept["received"]],
    }
    return Result(**parts, **{name: kept[name] for name in ("entropy", "clipped", "seconds")})


def accuracy(folder: Path, stage: Rl, size: Size) -> tuple[dict[str, float], dict[str, float]]:
    """Ask a checkpoint held-out questions of a stage's tasks, once each, at temperature 1.

    Returns:
        The share of right answers by task, of the questions that choose, and of those that are
        reported; the two have none in common.
    """
    model = load_model(folder).eval()
    assert model.published and model.published.tokenizer
    dialogue = Dialogue(model.published.tokenizer, table.family(model.published.family).CHAT)
    limits = {"max_tokens": stage.rollout.max_tokens, "length": model.arch.max_length}
    chosen, reported = {}, {}
    with Toolbox() as tools:
        player = Player(LocalSampler(model), dialogue, tools, **limits)
        for one in stage.environments:
            asked = draw([one], size.validation + size.test, PROBLEMS, held_out=True)
            right = [group[0].raw for group in player.play(asked, PROBLEMS)]
            chosen[one.name] = mean(right[: size.validation])
            reported[one.name] = mean(right[size.validation :])
    return chosen, reported


def _read(
    folder: Path, arm: Arm, stage: Rl, size: Size
) -> tuple[list[Point], list[float], list[float], list[Received]]:
    """Return points behind the start, entropies, shares of clipped tokens, and gradients."""
    rollout, home = stage.rollout, folder / "stages" / stage.name
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    steps = [step for step in lines if step["stage"] == stage.name]
    rounds = [step for step in steps if "length" in step]
    sampled = rollout.prompts * rollout.per_prompt
    tokens = [*accumulate(step["length"] * sampled for step in rounds)]
    points = []
    for done in range(size.every, size.rounds + 1, size.every):
        place = home / "kept" / str(done * arm.updates)
        points.append(Point(done, tokens[done - 1], *accuracy(place, stage, size)))
    clipped = [_clipped(step) for step in steps if "idle" not in step]
    records = folder / "rollouts" / f"{stage.name}.jsonl"
    got = received(records, stage, home / "checkpoint") if arm.fork else []
    return points, [step["entropy"] for step in rounds], clipped, got


def _rl(recipe: Recipe) -> Rl:
    return next(stage for stage in recipe.stages if isinstance(stage, Rl))


def _asked(size: Size) -> tuple[str, str, str]:
    return str(size.every), str(size.validation), str(size.test)


def _clipped(step: dict[str, Any]) -> float:
    """Clips that are logged apart never touch one token twice."""
    return sum(step.get(name, 0.0) for name in ("clipped_low", "clipped_high", "clipped"))


def _quietly(log: Path, overrides: list[str], folder: Path, until: str | None = None) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        train(RECIPE, overrides, out=folder, until=until)


def prepare(home: str, seed: int, size: Size, fork: bool) -> None:
    """Train and measure a warm start in a process of its own."""
    torch.set_num_threads(1)
    warm(Path(home), seed, size, fork=fork)


def work(home: str, arm: Arm, size: Size) -> Result:
    """Run an arm in a process of its own."""
    torch.set_num_threads(1)
    return run(Path(home), arm, size)
