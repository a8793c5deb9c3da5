"""Paired timings: etude and transformers on the same weights, interleaved, in one process.

A figure taken alone says little on a shared machine: here each repeat times both sides one after
the other, in alternating order, and the ratio is the median over the pairs.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from etude import arch
from etude.bench import picture
from etude.bench.limits import Limits, limits
from etude.bench.memory import peak
from etude.bench.sizes import SIZES
from etude.bench.works import WORKS, Work
from etude.errors import EtudeError, closest
from etude.files import atomic, write_json
from etude.models.checkpoint import create, save
from etude.nn.decoder import Decoder
from etude.nn.int8 import check, served

GROUPS = {
    "prefill": ("prefill-2k", "prefill-16k"),
    "decode": ("decode", "decode-16"),
    "memory": ("memory-train", "memory-prefill-16k"),
}
SERVED = {*GROUPS["prefill"], *GROUPS["decode"]}  # works of inference in this process
MEMORY = {"memory-train": "train", "memory-prefill-16k": "prefill-16k"}
SLOW = 20.0  # seconds of a pair beyond which one repeat has to do


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides of one work over the repeats, and their ratio.

    Args:
        family, work: what was timed.
        ours, theirs: median tokens per second, or peak megabytes for memory.
        ratio: median over the pairs of ours over theirs.
        low, high: smallest and largest ratio of a pair.
        threads: CPU threads of both.
        parameters: of the model.
        share: of what the machine can do at most, products or reading; None where neither fits.
    """

    family: str
    work: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    threads: int
    parameters: int
    share: float | None = None


def run(
    work: str = "all",
    *,
    family: str = "all",
    threads: int = 0,
    repeats: int = 5,
    weights: str = "stored",
    kernels: bool = False,
    as_json: bool = False,
    out: Path | None = None,
) -> list[Pair]:
    """Time both sides, and print one line per family and work.

    Args:
        work: one of `WORKS`, "prefill", "decode", "memory", or "all".
        family: a system that transformers has too, or "all".
        threads: CPU threads; 0 takes one per core.
        repeats: pairs to time, after one that warms up; one alone for works of many seconds.
        weights: "int8" rounds those of our side, for works that do not train.
        kernels: build the kernels of `ops.native`, and let our side use them.
        as_json: print one JSON object per work.
        out: folder that takes `bench.json` and `bench.svg`.

    Returns:
        What was printed.

    Raises:
        EtudeError: no such work or family, transformers is not installed, or rounded weights
            were to be trained.
    """
    works, names = _works(work), families(family)
    check(weights)
    if (weights == "int8" or kernels) and not set(works) <= SERVED:
        found = ", ".join(sorted(set(works) - SERVED))
        raise EtudeError("bench", f"{found} with int8 weights or kernels", "decode or prefill")
    pairs: list[Pair] = []
    with pinned(threads) as threads:
        most = limits()
        for name in names:
            with made(name) as (model, folder):
                model = served(model, weights=weights, kernels=kernels)
                for each in works:
                    pairs.append(_pair(name, each, model, folder, repeats, threads, most))
                    told = json.dumps(asdict(pairs[-1])) if as_json else line(pairs[-1])
                    print(told, flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        machine = {"flops": most.flops, "bytes": most.bytes, "threads": threads}
        write_json(out / "bench.json", {"machine": machine, "pairs": [asdict(p) for p in pairs]})
        with atomic(out / "bench.svg", "w") as file:
            file.write(picture.bars([(p.family, p.work, p.ratio) for p in pairs]))
    return pairs


def measure(
    ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int, tokens: int
) -> list[tuple[float, float]]:
    """Time both sides by turns; the one that goes first changes with each repeat.

    Returns:
        Tokens per second (ours, theirs) of each repeat, without the first that warms up, unless the
        work is so long that this one has to do.
    """
    rates: list[tuple[float, float]] = []
    for repeat in range(repeats + 1):
        order = (ours, theirs) if repeat % 2 else (theirs, ours)
        took = {side: _seconds(side) for side in order}
        rates.append((tokens / took[ours], tokens / took[theirs]))
        if sum(took.values()) > SLOW:
            break
    return rates[1:] or rates


def summary(
    family: str,
    work: str,
    rates: Sequence[tuple[float, float]],
    *,
    threads: int,
    parameters: int,
    share: float | None = None,
) -> Pair:
    """Reduce the repeats to medians and the spread of the ratio."""
    ratios = [ours / theirs for ours, theirs in rates]
    ours, theirs = (statistics.median(side) for side in zip(*rates, strict=True))
    middle = statistics.median(ratios)
    low, high = min(ratios), max(ratios)
    return Pair(family, work, ours, theirs, middle, low, high, threads, parameters, share)


def line(pair: Pair) -> str:
    """One row of the table."""
    unit = "MB" if pair.work.startswith("memory") else "tok/s"
    share = "" if pair.share is None else f"  {pair.share:4.0%} of the machine"
    return (
        f"{pair.family:11} {pair.work:18} {pair.parameters / 1e6:5.1f}M  {pair.threads} threads  "
        f"etude {pair.ours:9,.0f} {unit}  transformers {pair.theirs:9,.0f} {unit}  "
        f"ratio {pair.ratio:.2f} ({pair.low:.2f} to {pair.high:.2f}){share}"
    )


@contextmanager
def made(family: str) -> Iterator[tuple[Decoder, Path]]:
    """A model of the family's size, and a folder that transformers can open with its weights."""
    size = SIZES[family]
    model = create(family, "tiny", seed=0, **size.config)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model", layout=size.layout)
        yield model, Path(folder) / "model"


def peer(folder: Path) -> Any:
    """Open a checkpoint in transformers.

    Raises:
        EtudeError: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        do = "pip install 'etude[dev]'"
        raise EtudeError("bench", "transformers is not installed", do=do) from error
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    return theirs


def _works(work: str) -> list[str]:
    known = [*WORKS, *MEMORY]
    if work == "all":
        return known
    if work not in known and work not in GROUPS:
        names = ", ".join(dict.fromkeys([*GROUPS, *known, "all"]))
        raise EtudeError("bench", repr(work), names, closest(work, [*GROUPS, *known, "all"]))
    return list(GROUPS.get(work, (work,)))


def families(family: str) -> list[str]:
    """Return the systems that a name stands for: itself, or with "all" every one.

    Raises:
        EtudeError: no such family.
    """
    if family == "all":
        return list(SIZES)
    if family not in SIZES:
        near = closest(family, SIZES)
        raise EtudeError("bench family", repr(family), ", ".join([*SIZES, "all"]), near)
    return [family]


def _pair(
    family: str,
    work: str,
    model: Decoder,
    folder: Path,
    repeats: int,
    threads: int,
    most: Limits,
) -> Pair:
    parameters = arch.count(model.arch).trunk
    if work in MEMORY:
        sides = [peak(side, MEMORY[work], folder, threads) for side in ("ours", "theirs")]
        rates = [(sides[0] / 1e6, sides[1] / 1e6)]
        return summary(family, work, rates, threads=threads, parameters=parameters)
    theirs = peer(folder)
    found = WORKS[work](model, theirs)
    rates = measure(found.ours, found.theirs, repeats=repeats, tokens=found.tokens)
    share = _share(found, statistics.median(rate for rate, _ in rates), most)
    return summary(family, work, rates, threads=threads, parameters=parameters, share=share)


def _share(work: Work, rate: float, most: Limits) -> float | None:
    if work.flops:
        return work.flops / work.tokens * rate / most.flops
    return work.bytes / work.tokens * rate / most.bytes if work.bytes else None


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def pinned(threads: int) -> Iterator[int]:
    """Set the threads of products, 0 for one per core, for a while; yield how many."""
    before, threads = torch.get_num_threads(), threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)
