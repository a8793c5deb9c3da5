"""The reports' answers to quadratic attention, side by side: `python -m etude.bench.answers`.

One small model is trained with softmax attention, and with seven of eight mixers swapped for
banded, linear, lightning and Mamba-2 ones at equal parameters: loss, associative recall, and the
speed of a rollout by how much of it is already written. What has been trained is not trained again.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from etude import arch
from etude.data.corpus import build
from etude.data.library import Library
from etude.evals.bits import bits_per_byte
from etude.evals.recall import recalled
from etude.evals.stats import Estimate, mean, t_interval
from etude.files import write_json
from etude.models.checkpoint import load
from etude.nn.cache import Cache
from etude.nn.decoder import Decoder
from etude.run import train
from etude.text.tokenizer import Tokenizer

RECIPE = "mixers_tiny"
MIXERS = ("attention", "banded", "linear", "lightning", "mamba2")
SWAP = ("model.every=8", "model.match=params")
RATES, ADAM = (3e-3, 1e-2, 3e-2), 0.6  # of Muon, and what AdamW's group has of it
SEEDS = 3
LENGTHS = (256, 2048, 16384)  # tokens written before the timed ones
ROWS, STEPS = 4, 32  # answers written together, and timed steps
DOCUMENTS, READ = 40, 256  # held-out documents for bits per byte, and tokens read of each
TAIL = 0.2  # share of the steps whose mean loss chooses the learning rate


@dataclass(frozen=True, slots=True)
class Answer:
    """What one mixer gave.

    Attributes:
        mixer: its kind.
        rate: learning rate with the lowest loss.
        losses: mean training loss of the last steps, by learning rate.
        parameters: trained ones.
        bits: bits per byte of held-out text, over seeds.
        recall: share of right values, over seeds, by the number of pairs.
        rollout: tokens per second of all rows together, by the tokens written before.
    """

    mixer: str
    rate: float
    losses: dict[float, float]
    parameters: int
    bits: Estimate
    recall: dict[int, Estimate]
    rollout: dict[int, float]


def run(home: Path, mixers: Sequence[str] = MIXERS, overrides: Sequence[str] = ()) -> list[Answer]:
    """Train and measure every mixer, and print the table.

    Args:
        home: folder of all runs; `answers.json` is written there.
        mixers: kinds of `etude.arch.swap`.
        overrides: `key=value` for every run, as `pretrain.tokens=200k`.

    Returns:
        One answer per mixer.
    """
    found = []
    for mixer in mixers:
        found.append(_answer(home, mixer, overrides))
        print(table(found[-1:]) if len(found) == 1 else row(found[-1]), flush=True)
    write_json(home / "answers.json", [_plain(answer) for answer in found])
    return found


def table(answers: Sequence[Answer]) -> str:
    """Return the head and a line per mixer."""
    first = answers[0]
    pairs = "".join(f"{f'recall {n}':>15}" for n in first.recall)
    speed = "".join(f"{f'tok/s {n}':>13}" for n in first.rollout)
    head = f"{'mixer':11}{'params':>9}{'rate':>9}{'bits/byte':>16}{pairs}{speed}"
    return "\n".join([head, *map(row, answers)])


def row(answer: Answer) -> str:
    """Return the line of one mixer: means over seeds with the reach of their 95% intervals."""
    recall = "".join(f"{_cell(one, 100, 0):>15}" for one in answer.recall.values())
    speed = "".join(f"{rate:13,.0f}" for rate in answer.rollout.values())
    bits = _cell(answer.bits, 1, 3)
    return f"{answer.mixer:11}{answer.parameters:9,}{answer.rate:9g}{bits:>16}{recall}{speed}"


def rollout(model: Decoder, written: int) -> float:
    """Return tokens per second of rows that have `written` tokens behind them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.arch.vocab, (1, written), generator=generator)
    cache = Cache(model, rows=1, capacity=written + STEPS + 1)
    with torch.inference_mode():
        model(ids, cache=cache)
        cache.keep(torch.zeros(ROWS, dtype=torch.long))  # every row has read the same
        last = ids[:, -1:].expand(ROWS, 1)
        model(last, cache=cache)
        start = time.perf_counter()
        for _ in range(STEPS):
            last = model(last, cache=cache)[:, -1:].argmax(-1)
        return ROWS * STEPS / (time.perf_counter() - start)


def _answer(home: Path, mixer: str, overrides: Sequence[str]) -> Answer:
    runs = {rate: _train(home, mixer, rate, 0, overrides) for rate in RATES}
    losses = {rate: _loss(folder) for rate, folder in runs.items()}
    rate = min(RATES, key=lambda rate: losses[rate])
    more = [_train(home, mixer, rate, seed, overrides) for seed in range(1, SEEDS)]
    models = [load(folder) for folder in (runs[rate], *more)]
    bits = t_interval([_bits(model) for model in models])
    found = (recalled(model, _words(model)) for model in models)
    shares = [{n: one.value for n, one in by_pairs.items()} for by_pairs in found]
    recall = {n: t_interval([share[n] for share in shares]) for n in shares[0]}
    speed = {written: rollout(models[0], written) for written in LENGTHS}
    parameters = arch.count(models[0].arch).trunk
    return Answer(mixer, rate, losses, parameters, bits, recall, speed)


def _train(home: Path, mixer: str, rate: float, seed: int, overrides: Sequence[str]) -> Path:
    swap = [f"model.mixer={mixer}", *(SWAP if mixer != "attention" else ())]
    rates = (f"optimizer.learning_rate={rate}", f"optimizer.adam_learning_rate={ADAM * rate}")
    how = [*swap, *rates, f"seed={seed}", *overrides]
    with redirect_stdout(sys.stderr):
        return train(RECIPE, how, out=home / f"{mixer}-{rate:g}-{seed}")


def _loss(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [step["loss"] for step in map(json.loads, lines) if "loss" in step]
    return mean(losses[-max(1, round(TAIL * len(losses))) :])


def _words(model: Decoder) -> Tokenizer:
    assert model.published and model.published.tokenizer
    return model.published.tokenizer


def _bits(model: Decoder) -> float:
    words = _words(model)
    # one seed for all, so that every model reads the same documents
    texts = [d.text for d in Library(build("smoke"), 1, 0).held_out("general", DOCUMENTS)]
    rows = [ids[:READ] for ids in words.encode_batch(texts)]
    # the first token is given, so its bytes do not count
    return bits_per_byte(model, [(ids, len(words.decode_bytes(ids[1:]))) for ids in rows]).value


def _cell(estimate: Estimate, scale: float, digits: int) -> str:
    half = (estimate.high - estimate.value) * scale
    return f"{estimate.value * scale:.{digits}f} ±{half:.{digits}f}"


def _plain(answer: Answer) -> dict[str, Any]:
    bits, pairs = answer.bits, answer.recall.items()
    return {
        "mixer": answer.mixer,
        "rate": answer.rate,
        "losses": {str(rate): loss for rate, loss in answer.losses.items()},
        "parameters": answer.parameters,
        "bits_per_byte": [bits.value, bits.low, bits.high],
        "recall": {str(n): [one.value, one.low, one.high] for n, one in pairs},
        "rollout": {str(n): rate for n, rate in answer.rollout.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *more = sys.argv[1:] or ["runs/answers"]
    run(Path(folder), overrides=more)
