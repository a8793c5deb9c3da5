"""Cost of a long context: reading it, a token more behind it, and what it takes to remember it.

Each length is read once and continued, by etude; by etude with every mixer swapped for attention at
equal parameters, where the system has others; and by transformers. Nemotron 3 claims that its
decoding hardly slows with length (arXiv:2512.20856): of its layers only a few look back.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from etude import arch
from etude.arch.swap import match, swap
from etude.bench import pair
from etude.engine.generate import stream
from etude.evals.speed import STEPS, context, kept, timed
from etude.files import write_json
from etude.models.checkpoint import compose
from etude.nn.decoder import Decoder

LENGTHS = (256, 2048, 16_384, 65_536)
MOST = 16_384  # longest context of the sides that would take many minutes
Reading = tuple[Callable[[], object], Callable[[], object], Callable[[], int]]


@dataclass(frozen=True, slots=True)
class Point:
    """One side at one length.

    Attributes:
        family: the system.
        side: `etude`, `attention` (its twin) or `transformers`.
        length: tokens of the context.
        read_us: microseconds per token of reading it.
        step_ms: milliseconds of one token behind it, the median.
        memory: bytes kept for it: states, and keys and values.
        threads: CPU threads.
        parameters: of the model.
    """

    family: str
    side: str
    length: int
    read_us: float
    step_ms: float
    memory: int
    threads: int
    parameters: int


def run(
    family: str,
    *,
    threads: int = 0,
    as_json: bool = False,
    out: Path | None = None,
    lengths: tuple[int, ...] = LENGTHS,
) -> list[Point]:
    """Measure a family at every length, and print a line each.

    Args:
        family: a system of `bench.sizes`, or "all".
        threads: CPU threads; 0 takes one per core.
        as_json: print one JSON object per line.
        out: folder that takes `longctx.json`.
        lengths: tokens of the contexts.

    Raises:
        EtudeError: no such family, or transformers is not installed.
    """
    points: list[Point] = []
    with pair.pinned(threads) as count:
        for name in pair.families(family):
            for point in _family(name, lengths, count):
                points.append(point)
                print(json.dumps(asdict(point)) if as_json else line(point), flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "longctx.json", [asdict(point) for point in points])
    return points


def line(point: Point) -> str:
    """One row of the table."""
    return (
        f"{point.family:11} {point.side:12} {point.parameters / 1e6:5.1f}M  "
        f"{point.threads} threads  {point.length:7,} tokens  read {point.read_us:8.1f} us/token  "
        f"then {point.step_ms:7.2f} ms/token  kept {point.memory / 1e6:8.2f} MB"
    )


def twin(decoder: arch.Decoder) -> arch.Decoder | None:
    """Return the description with attention in every mixer, as large; None if it is so already."""
    other = swap(decoder, mixer="attention")
    if other == decoder:
        return None
    return match(other, decoder, "params", length=MOST).decoder


def _family(name: str, lengths: tuple[int, ...], threads: int) -> Iterator[Point]:
    with pair.made(name) as (model, folder):
        other = twin(model.arch)
        sides: dict[str, Any] = {"etude": model}
        if other:
            sides["attention"] = compose(other, chat=None)
        sides["transformers"] = pair.peer(folder)
        parameters = arch.count(model.arch).trunk
        for length in lengths:
            for side, one in sides.items():
                if length > MOST and not (side == "etude" and other):
                    continue
                of = _theirs if side == "transformers" else _ours
                read, step, memory = of(one, context(model.arch.vocab, length))
                with torch.inference_mode():
                    took = timed(read, step)
                times = took.read / length * 1e6, took.step * 1e3
                yield Point(name, side, length, *times, memory(), threads, parameters)


def _ours(model: Decoder, ids: list[int]) -> Reading:
    """The engine: the first token comes when the context is read, then one a step."""
    tokens = stream(model, ids, max_tokens=STEPS + 2)
    return lambda: next(tokens), lambda: next(tokens), lambda: kept(model, len(ids))


def _theirs(model: Any, ids: list[int]) -> Reading:
    held: dict[str, Any] = {}
    row = torch.tensor([ids])

    def read() -> None:
        held["past"] = model(row, use_cache=True, logits_to_keep=1).past_key_values

    def step() -> None:
        model(row[:, -1:], past_key_values=held["past"], use_cache=True)

    return read, step, lambda: _held(held["past"])


def _held(past: Any) -> int:
    """Bytes of the tensors in a cache of transformers."""
    layers = [vars(layer).values() for layer in past.layers]
    found = (one for layer in layers for value in layer for one in _tensors(value))
    return sum(one.numel() * one.element_size() for one in found)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)
