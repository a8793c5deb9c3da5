"""What one step of reinforcement learning costs on two sides, part by part, and in words."""

import statistics
from dataclasses import dataclass, field

PARTS = ("generation", "scoring", "update")


@dataclass(slots=True)
class Spent:
    """What one side used in its steps: seconds of each part, in order of `PARTS`, and lengths.

    Attributes:
        cpu: processor seconds of each step.
        wall: seconds on the clock of each step.
        length: mean tokens of an answer, by step.
    """

    cpu: list[tuple[float, float, float]] = field(default_factory=list)
    wall: list[tuple[float, float, float]] = field(default_factory=list)
    length: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians of both sides over the steps.

    Attributes:
        ours, theirs: CPU seconds of a step.
        wall_ours, wall_theirs: the same on the clock.
        ratio: median over the steps of theirs over ours, in CPU seconds.
        low, high: smallest and largest of them.
        parts: CPU seconds of generation, scoring and update: ours, theirs.
        lengths: mean tokens of an answer: ours, theirs.
        steps: that were counted; one before them warmed up.
        threads: CPU threads of both.
        parameters: of the model.
        kernels: whether those of `ops.native` sampled on our side.
    """

    ours: float
    theirs: float
    wall_ours: float
    wall_theirs: float
    ratio: float
    low: float
    high: float
    parts: dict[str, tuple[float, float]]
    lengths: tuple[float, float]
    steps: int
    threads: int
    parameters: int
    kernels: bool


def table(pair: Pair) -> str:
    """Return the lines of both sides."""
    ours, theirs = zip(*pair.parts.values(), strict=True)
    rows = (
        ("etude", pair.ours, pair.wall_ours, ours, pair.lengths[0]),
        ("TRL", pair.theirs, pair.wall_theirs, theirs, pair.lengths[1]),
    )
    head = f"{'':8}{'cpu s':>8}{'clock s':>9}" + "".join(f"{name:>12}" for name in PARTS)
    lines = [head + f"{'length':>9}"]
    for name, cpu, wall, each, length in rows:
        cells = "".join(f"{one:12.2f}" for one in each)
        lines.append(f"{name:8}{cpu:8.2f}{wall:9.2f}{cells}{length:9.1f}")
    kernels = ", kernels" if pair.kernels else ""
    lines.append(
        f"ratio {pair.ratio:.2f} ({pair.low:.2f} to {pair.high:.2f}) in CPU seconds, "
        f"{pair.steps} steps, {pair.parameters / 1e6:.1f}M, threads {pair.threads}{kernels}"
    )
    return "\n".join(lines)


def summary(ours: Spent, theirs: Spent, *, threads: int, parameters: int, kernels: bool) -> Pair:
    """Reduce the steps to medians, without the first, which warms up."""
    sides = ours, theirs
    cpu = [[sum(step) for step in side.cpu[1:]] for side in sides]
    wall = [[sum(step) for step in side.wall[1:]] for side in sides]
    ratios = [their / our for our, their in zip(*cpu, strict=True)]
    middle = statistics.median
    each = {
        name: (
            middle(step[n] for step in ours.cpu[1:]),
            middle(step[n] for step in theirs.cpu[1:]),
        )
        for n, name in enumerate(PARTS)
    }
    return Pair(
        middle(cpu[0]),
        middle(cpu[1]),
        middle(wall[0]),
        middle(wall[1]),
        middle(ratios),
        min(ratios),
        max(ratios),
        each,
        (statistics.mean(ours.length), statistics.mean(theirs.length)),
        len(ratios),
        threads,
        parameters,
        kernels,
    )
