"""What mixers without a growing cache win in rollouts, by how much is already written.

Eight answers are written side by side behind contexts of several lengths, each with a memory of its
own, as long rollouts have: by a system's own mixers, and by its twin with softmax attention in
every layer at equal parameters. MiniMax-M1 took lightning attention for this (arXiv:2506.13585,
section 1), Nemotron 3 takes Mamba-2 (arXiv:2512.20856).

And what it wins to let attempts go on while the tools of others work (`rollout.overlap`).
"""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from etude import arch
from etude.bench import pair, rl
from etude.bench.longctx import twin
from etude.bench.picture import curves
from etude.bench.sizes import SIZES
from etude.evals.speed import context
from etude.files import atomic, write_json
from etude.models.checkpoint import compose, create
from etude.nn.cache import Cache
from etude.nn.decoder import Decoder
from etude.rl.dialogue import Dialogue
from etude.rl.environment import Outcome, Start
from etude.rl.rollout import Limits, rollouts
from etude.rl.sampler import Completion, Prompt, Sampling
from etude.text.turns import Message

FAMILIES = ("minimax_m1", "nemotron3", "glm45")
LENGTHS = (256, 2048, 8192, 16_384)  # tokens behind which is written
ROWS, STEPS = 8, 12  # answers side by side, and timed steps: the fastest is the least disturbed
ATTEMPTS, TURNS, TOOL = 32, 4, 0.2  # attempts with slow tools, calls of each, seconds of a call
SHORT, LONG = 8, 64  # tokens of a turn that ends in a call
ANSWER = 512  # tokens of an answer, for the share of a rollout's time
PASS = 2048  # tokens of a context that are read at once, as the engine does


@dataclass(frozen=True, slots=True)
class Point:
    """One side at one length.

    Attributes:
        family: the system.
        side: `own` mixers, or `attention` in all layers.
        length: tokens that every answer has before it.
        tokens: sampled per second of processor time, all answers together.
        share: of the time of a rollout that reads the context once and writes `ANSWER` tokens of
            each answer, the part that sampled tokens take.
        threads: CPU threads.
        parameters: of the model.
    """

    family: str
    side: str
    length: int
    tokens: float
    share: float
    threads: int
    parameters: int


def run(
    family: str = "all",
    *,
    threads: int = 1,
    as_json: bool = False,
    out: Path | None = None,
    lengths: tuple[int, ...] = LENGTHS,
) -> list[Point]:
    """Measure, and print a line per family, side and length.

    Args:
        family: a system of `bench.sizes`; "all" takes the three that differ in their mixers.
        threads: CPU threads; 0 takes one per core.
        as_json: print one JSON object per line.
        out: folder that takes `rollout.json` and `rollout.svg`.
        lengths: tokens of the contexts.

    Raises:
        EtudeError: no such family.
    """
    names = FAMILIES if family == "all" else pair.families(family)
    points: list[Point] = []
    with pair.pinned(threads) as count:
        for name in names:
            for point in _family(name, lengths, count):
                points.append(point)
                print(json.dumps(asdict(point)) if as_json else line(point), flush=True)
        waits = tools()
    told = f"{ATTEMPTS} attempts of {TURNS} calls that take {TOOL:g} s each: {waits[0]:.1f} s, "
    told += f"with overlap {waits[1]:.1f} s"
    print(json.dumps({"apart": waits[0], "overlap": waits[1]}) if as_json else told)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found = [asdict(point) for point in points]
        found_tools = {"apart": waits[0], "overlap": waits[1], "tool": TOOL, "turns": TURNS}
        write_json(out / "rollout.json", {"points": found, "tools": found_tools})
        with atomic(out / "rollout.svg", "w") as file:
            file.write(drawn(points))
    return points


def line(point: Point) -> str:
    """One row of the table."""
    return (
        f"{point.family:11} {point.side:10} {point.parameters / 1e6:5.1f}M  "
        f"{point.threads} threads  behind {point.length:6,} tokens  {point.tokens:7.1f} tokens a "
        f"CPU second, {ROWS} answers  {point.share:4.0%} of a rollout of {ANSWER}"
    )


def drawn(points: list[Point]) -> str:
    """Tokens per second over those behind the shortest context, by length, as SVG."""
    lines: dict[str, list[tuple[float, float]]] = {}
    first: dict[str, float] = {}
    for point in points:
        name = f"{point.family}, {point.side}"
        first.setdefault(name, point.tokens)
        lines.setdefault(name, []).append((float(point.length), point.tokens / first[name]))
    title = f"Sampled tokens per CPU second behind a context, {ROWS} answers; its shortest is 1"
    return curves(title, lines)


def measure(model: Decoder, length: int) -> tuple[float, float]:
    """Return CPU seconds of reading a context once, and of one token of every answer behind it.

    Args:
        model: a decoder.
        length: tokens of the context.
    """
    ids = torch.tensor([context(model.arch.vocab, length)])
    cache = Cache(model, rows=1, capacity=length + STEPS + 1)
    with torch.inference_mode():
        start = time.process_time()
        for at in range(0, length, PASS):
            model(ids[:, at : at + PASS], cache=cache)
        read = time.process_time() - start
        cache.keep(torch.zeros(ROWS, dtype=torch.long))
        last, took = ids[:, -1:].expand(ROWS, 1), []
        for _ in range(STEPS + 1):
            start = time.process_time()
            last = model(last, cache=cache)[:, -1:].argmax(-1)
            took.append(time.process_time() - start)
    return read, min(took[1:])


def _family(name: str, lengths: tuple[int, ...], threads: int) -> Iterator[Point]:
    model = create(name, "tiny", seed=0, **SIZES[name].config)
    other = twin(model.arch)
    sides = {"own": model} | ({"attention": compose(other, chat=None)} if other else {})
    for length in lengths:
        for side, one in sides.items():
            read, step = measure(one, length)
            share = ANSWER * step / (read + ANSWER * step)
            parameters = arch.count(one.arch).trunk
            yield Point(name, side, length, ROWS / step, share, threads, parameters)


class Varied(rl.Whole):
    """A sampler whose turns have lengths of their own, from `SHORT` to `LONG` tokens."""

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer each prompt, in order."""
        own = [replace(one, max_tokens=SHORT + one.seed % (LONG + 1 - SHORT)) for one in prompts]
        return await super().sample(own, params)


class Slow:
    """An attempt that calls a tool at the end of each turn, and waits for it."""

    def __init__(self) -> None:
        self.turn = 0

    async def start(self) -> Start:
        """Ask."""
        return Start([{"role": "user", "content": "sort the letters"}], None, False)

    async def step(self, reply: Message) -> Outcome:
        """Wait for the tool."""
        await asyncio.sleep(TOOL)
        self.turn += 1
        said = [{"role": "tool", "tool_call_id": "0", "content": str(self.turn)}]
        return Outcome(said, done=self.turn == TURNS)


def tools() -> tuple[float, float]:
    """Return seconds of rollouts whose attempts wait for each other's tools, or do not."""
    size = rl.SIZE
    model, words = create("glm45", "tiny", seed=0, **size), rl.tokenizer(size["vocab_size"])
    took = []
    for overlap in (False, True):
        limits = Limits(LONG, size["max_position_embeddings"], overlap=overlap)
        sampler = Varied(model, overlap=overlap)
        start = time.perf_counter()
        made = rollouts(
            sampler, Dialogue(words), [Slow() for _ in range(ATTEMPTS)], range(ATTEMPTS), limits
        )
        took.append(time.perf_counter() - start)
        assert all(one.status == "completed" and one.turns == TURNS for one in made)
    return took[0], took[1]
