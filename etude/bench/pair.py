"""Paired timings: etude and transformers on the same weights, interleaved, in one process.

A figure taken alone says little on a shared machine: here each repeat times both sides one after
the other, in alternating order, and the ratio is the median over the pairs.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from etude import arch
from etude.engine.generate import generate
from etude.errors import EtudeError, closest
from etude.models.checkpoint import create, save
from etude.nn.decoder import Decoder

# About five million parameters: the sizes at which the goals of the project are set.
FIVE_MILLION: dict[str, dict[str, Any]] = {
    "glm45": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "vocab_size": 2048,
        "num_nextn_predict_layers": 0,
    }
}
ROWS, LENGTH = 8, 512  # a training step
PROMPT, NEW = 16, 64  # one greedy answer


@dataclass(frozen=True, slots=True)
class Pair:
    """Tokens per second of both sides over the repeats, and their ratio.

    Args:
        work: what was timed.
        ours, theirs: median tokens per second.
        ratio: median over the pairs of ours over theirs.
        low, high: smallest and largest ratio of a pair.
        threads: CPU threads of both.
        parameters: of the model.
    """

    work: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    threads: int
    parameters: int


def run(
    work: str = "all",
    *,
    family: str = "glm45",
    threads: int = 0,
    repeats: int = 5,
    as_json: bool = False,
) -> list[Pair]:
    """Time both sides, and print one line per work.

    Args:
        work: "train", "decode" or "all".
        family: a system that transformers has too.
        threads: CPU threads; 0 takes one per core.
        repeats: pairs to time, after one that warms up.
        as_json: print one JSON object per work.

    Returns:
        What was printed.

    Raises:
        EtudeError: no such work or family, or transformers is not installed.
    """
    works = {"train": _train, "decode": _decode}
    if work not in (*works, "all"):
        raise EtudeError("bench", repr(work), "train, decode or all", closest(work, works))
    if family not in FIVE_MILLION:
        near = closest(family, FIVE_MILLION)
        raise EtudeError("bench family", repr(family), ", ".join(FIVE_MILLION), near)
    threads = threads or os.cpu_count() or 1
    with _pinned(threads):
        pairs = []
        for name in works if work == "all" else [work]:
            model = create(family, "tiny", seed=0, **FIVE_MILLION[family])
            ours, theirs, tokens = works[name](model, _peer(model))
            rates = measure(ours, theirs, repeats=repeats, tokens=tokens)
            parameters = arch.count(model.arch).trunk
            pairs.append(summary(name, rates, threads=threads, parameters=parameters))
            print(json.dumps(asdict(pairs[-1])) if as_json else line(pairs[-1]), flush=True)
    return pairs


def measure(
    ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int, tokens: int
) -> list[tuple[float, float]]:
    """Time both sides by turns; the one that goes first changes with each repeat.

    Returns:
        Tokens per second (ours, theirs) of each repeat, without the first that warms up.
    """
    rates = []
    for repeat in range(repeats + 1):
        order = (ours, theirs) if repeat % 2 else (theirs, ours)
        took = {side: tokens / _seconds(side) for side in order}
        rates.append((took[ours], took[theirs]))
    return rates[1:]


def summary(work: str, rates: list[tuple[float, float]], *, threads: int, parameters: int) -> Pair:
    """Reduce the repeats to medians and the spread of the ratio."""
    ratios = [ours / theirs for ours, theirs in rates]
    ours, theirs = (statistics.median(side) for side in zip(*rates, strict=True))
    middle = statistics.median(ratios)
    return Pair(work, ours, theirs, middle, min(ratios), max(ratios), threads, parameters)


def line(pair: Pair) -> str:
    """One row of the table."""
    return (
        f"{pair.work:7} {pair.parameters / 1e6:.1f}M  {pair.threads} threads  "
        f"etude {pair.ours:8,.0f} tok/s  transformers {pair.theirs:8,.0f} tok/s  "
        f"ratio {pair.ratio:.2f} ({pair.low:.2f} to {pair.high:.2f})"
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peer(model: Decoder) -> Any:
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        do = "pip install 'etude[dev]'"
        raise EtudeError("bench", "transformers is not installed", do=do) from error
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model")
        peer = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    return peer


def _train(ours: Decoder, theirs: Any) -> tuple[Callable[[], object], Callable[[], object], int]:
    """One step on the same rows with the same optimizer: forward, loss, backward, update."""
    ids = torch.randint(ours.arch.vocab, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    steps = [torch.optim.AdamW(m.parameters(), lr=1e-4, foreach=True) for m in (ours, theirs)]

    def step_ours() -> None:
        loss = -ours(ids, labels=labels).logp.sum() / (ROWS * (LENGTH - 1))
        _update(loss, steps[0])

    def step_theirs() -> None:
        _update(theirs(input_ids=ids, labels=ids, use_cache=False).loss, steps[1])

    return step_ours, step_theirs, ids.numel()


def _update(loss: torch.Tensor, step: torch.optim.Optimizer) -> None:
    loss.backward()
    step.step()
    step.zero_grad(set_to_none=True)


def _decode(ours: Decoder, theirs: Any) -> tuple[Callable[[], object], Callable[[], object], int]:
    """One greedy answer to one prompt, prompt included in the time."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(ours.arch.vocab, (1, PROMPT), generator=generator)
    theirs.eval()

    def answer_ours() -> list[int]:
        return generate(ours, ids.tolist(), max_tokens=NEW)[0].tokens

    def answer_theirs() -> list[int]:
        mask = torch.ones_like(ids)
        made = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        return made[0, PROMPT:].tolist()

    return answer_ours, answer_theirs, NEW
