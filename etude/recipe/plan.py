"""What a recipe will cost before anything runs: tokens, FLOPs, time and peak memory per stage.

The arithmetic is exact where the recipe fixes the work (text, conversations) and an upper estimate
where the model
decides it (answers of RL and of evaluation count at `ANSWER` of their longest).
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from etude import arch
from etude.recipe.plan_post import work
from etude.recipe.post import Distill, Preference, RewardModel
from etude.recipe.stages import Eval, Midtrain, Pretrain, Recipe, Rl, Sft, Stage, Trained, Unify

ANSWER = 0.5  # an answer's usual length as a share of the longest allowed; our choice
PROMPT = 24  # tokens of a task's question; measured on the shipped tasks
EXAMPLE = 12  # tokens of a solved example in a prompt; measured on the shipped tasks
TRAINING = 0.3  # share of the machine's GEMM rate that training reaches, see `etude bench train`
SAMPLING = 0.10  # the same for cached batched decoding, see `etude bench decode`


@dataclass(frozen=True, slots=True)
class Row:
    """Cost of one stage.

    Attributes:
        name, stage: name and kind.
        tokens: tokens trained on, or read and written when nothing trains.
        flops: floating-point operations.
        seconds: estimate on this machine.
        micro: tokens of the largest batch that a device works on at once; 0 where none trains.
        note: what the numbers do not say.
        memory: peak bytes of a device.
    """

    name: str
    stage: str
    tokens: int
    flops: float
    seconds: float
    micro: int
    note: str = ""
    memory: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return asdict(self)


def machine_rate() -> float:
    """Measure this machine's float32 matrix product in FLOP/s: one core's, times the cores.

    In a process of its own, since a library that has started its threads keeps them.
    """
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    alone = os.environ | dict.fromkeys(names, "1")
    found = subprocess.run(
        [sys.executable, "-c", _PRODUCT], env=alone, capture_output=True, text=True, check=True
    )
    return float(found.stdout) * (os.cpu_count() or 1)


_PRODUCT = """
import time, numpy
a = numpy.ones((512, 512), dtype=numpy.float32)
best, end = 1e9, time.perf_counter() + 0.2
while (start := time.perf_counter()) < end:
    a @ a
    best = min(best, time.perf_counter() - start)
print(2 * 512**3 / best)
"""


def cost(
    recipe: Recipe,
    decoder: arch.Decoder,
    rate: float,
    *,
    devices: int = 1,
    others: Mapping[str, arch.Decoder] | None = None,
) -> list[Row]:
    """Return one row per stage.

    Args:
        recipe: a resolved recipe.
        decoder: the model it trains.
        rate: FLOP/s of the matrix product of one device.
        devices: that share the work evenly; the peak is that of one, with weights, gradients and
            optimizer state sharded.
        others: by stage, where stages train other sizes.
    """
    found = []
    for stage in recipe.stages:
        plan = (others or {}).get(stage.name, decoder)
        if isinstance(stage, Eval):  # which measures several: the largest says it from above
            plan = max(((others or {}).get(of, decoder) for of in stage.of), key=_parameters)
        row = _row(stage, plan, rate * devices, others or {})
        if plan != decoder and not isinstance(stage, Eval):
            row = replace(row, note=f"{_short(_parameters(plan))} parameters")
        peak = _peak(stage, plan, row.micro, devices) + row.memory  # so far: of other models
        found.append(replace(row, memory=peak))
    return found


def _parameters(decoder: arch.Decoder) -> int:
    return arch.count(decoder).trunk


def _peak(stage: Stage, decoder: arch.Decoder, tokens: int, devices: int) -> int:
    """Bytes of weights, and of all that training a micro-batch of `tokens` needs beside them."""
    if isinstance(stage, Eval):
        return 4 * (arch.count(decoder).trunk + arch.count(decoder).mtp) // devices
    states = 1 if stage.optimizer.kind == "muon" else 2
    return arch.memory(decoder, tokens, states=states, devices=devices)


def _row(
    stage: Stage, decoder: arch.Decoder, rate: float, others: Mapping[str, arch.Decoder]
) -> Row:
    match stage:
        case Preference() | RewardModel() | Distill():
            return _post(stage, decoder, rate, others)
        case Eval():
            return _evaluation(stage, decoder, rate)
        case Rl():
            return _taught(_rl(stage, decoder, rate), stage, others, rate)
        case Pretrain() | Midtrain():
            return _mixed(stage, decoder, rate)
        case Sft():
            return _text(stage, decoder, rate, stage.data.length, stage.tokens)
        case Unify():
            return _unify(stage, decoder, rate)


def _mixed(stage: Pretrain | Midtrain, decoder: arch.Decoder, rate: float) -> Row:
    """Text whose steps may have rows of two lengths."""
    row, short = _text(stage, decoder, rate, stage.data.length, stage.tokens), stage.data.short
    if short is None:
        return row
    flops = arch.train_flops(decoder, short.length) * stage.tokens
    flops = short.share * flops + (1 - short.share) * row.flops
    note = f"{short.share:.0%} of the steps in rows of {short.length:,}"
    return replace(row, flops=flops, seconds=flops / (rate * TRAINING), note=note)


def _text(stage: Trained, decoder: arch.Decoder, rate: float, length: int, tokens: int) -> Row:
    flops = arch.train_flops(decoder, length) * tokens
    micro = stage.batch.micro or stage.batch.rows
    if stage.balance.batch_weight and micro < stage.batch.rows:
        flops *= 4 / 3  # the choices of a step that is cut are counted by one more forward pass
    return Row(
        stage.name,
        stage.stage,
        tokens,
        flops,
        flops / (rate * TRAINING),
        micro * length,
    )


def _sampling(
    decoder: arch.Decoder, answers: int, max_tokens: int, turns: int
) -> tuple[int, float]:
    """Return tokens and forward FLOPs of sampling `answers` answers, none beyond the context."""
    written = min(int(max_tokens * ANSWER) * turns, max(1, decoder.max_length - PROMPT))
    tokens = answers * (PROMPT + written)
    return tokens, arch.flops(decoder, (PROMPT + written) / 2) * tokens


def _rl(stage: Rl, decoder: arch.Decoder, rate: float) -> Row:
    turns = max(e.turns for e in stage.environments)
    answers = stage.steps * stage.rollout.prompts * stage.rollout.per_prompt
    if stage.difficulty.keep != "all":
        tries = stage.difficulty.k + (
            stage.difficulty.many if stage.difficulty.keep == "hard" else 0
        )
        answers += stage.difficulty.pool * tries
    tokens, sampled = _sampling(decoder, answers, stage.rollout.max_tokens, turns)
    length = max(1, tokens // max(1, answers))
    trained = arch.train_flops(decoder, length) * tokens * stage.rollout.updates
    seconds = sampled / (rate * SAMPLING) + trained / (rate * TRAINING)
    micro = (stage.batch.micro or 64) * length
    return Row(
        stage.name, stage.stage, tokens, sampled + trained, seconds, micro, f"{stage.steps} steps"
    )


def _unify(stage: Unify, decoder: arch.Decoder, rate: float) -> Row:
    row = _text(stage, decoder, rate, stage.data.length, stage.tokens)
    turns = max(t.turns for t in stage.samples_of)
    answers = stage.prompts * stage.tries
    _, sampled = _sampling(decoder, answers, stage.max_tokens, turns)
    note = f"{answers} answers sampled"
    seconds = row.seconds + sampled / (rate * SAMPLING)
    return replace(row, flops=row.flops + sampled, seconds=seconds, note=note)


def _taught(row: Row, stage: Rl, others: Mapping[str, arch.Decoder], rate: float) -> Row:
    """Add the passes and the weights of the teachers of sampled distillation."""
    names = [*stage.distill.stages, stage.distill.path] if stage.distill else []
    known = [others[name] for name in dict.fromkeys(names) if name in others]
    if not known:
        return row
    flops = max(arch.flops(teacher, PROMPT) for teacher in known) * row.tokens
    beside = sum(4 * arch.count(teacher).trunk for teacher in known)
    seconds = row.seconds + flops / (rate * TRAINING)
    return replace(row, flops=row.flops + flops, seconds=seconds, memory=beside)


def _post(
    stage: Preference | RewardModel | Distill,
    decoder: arch.Decoder,
    rate: float,
    others: Mapping[str, arch.Decoder],
) -> Row:
    found = work(stage, decoder, others, prompt=PROMPT, answer=ANSWER)
    flops = found.trained + found.read + found.sampled
    seconds = (found.trained + found.read) / (rate * TRAINING) + found.sampled / (rate * SAMPLING)
    row = Row(stage.name, stage.stage, found.tokens, flops, seconds, found.micro, found.note)
    return replace(row, memory=found.beside)


def _evaluation(stage: Eval, decoder: arch.Decoder, rate: float) -> Row:
    tokens, flops = 0, 0.0
    for probe in stage.probes.values():
        asked = stage.items * len(probe.levels) * len(probe.thinking) * (1 + stage.samples)
        for turns in probe.limits:
            more, work = _sampling(decoder, asked * len(stage.of), stage.max_tokens, turns)
            tokens, flops = tokens + more, flops + work
    for few in stage.fewshot.values():
        asked = sum(stage.items * (EXAMPLE * shots + PROMPT) for shots in few.shots)
        tokens += asked * len(stage.of)
        flops += arch.flops(decoder, EXAMPLE * max(few.shots) / 2) * asked * len(stage.of)
    for length in stage.speed:
        tokens += length * len(stage.of)
        flops += arch.flops(decoder, length / 2) * length * len(stage.of)
    read = len(stage.domains) * stage.documents * stage.length * len(stage.of)
    flops += arch.flops(decoder, stage.length / 2) * read
    if stage.by_length:
        edge = stage.by_length.edges[-1]
        far = len(stage.by_length.domains) * stage.by_length.stretches * edge * len(stage.of)
        read, flops = read + far, flops + arch.flops(decoder, edge / 2) * far
    note, seconds = f"{len(stage.of)} stages", flops / (rate * SAMPLING)
    return Row(stage.name, stage.stage, tokens + read, flops, seconds, 0, note)


def table(recipe: Recipe, decoder: arch.Decoder, rows: list[Row]) -> str:
    """Return the plan as text: a headline, a line per stage, the sum."""
    counts = arch.count(decoder)
    head = (
        f"{recipe.recipe}   {len(rows)} stages   {_short(counts.trunk + counts.mtp)} parameters, "
        f"{_short(counts.active_head)} active"
    )
    lines = [head]
    wide = max(len(row.name) for row in rows)
    for i, row in enumerate(rows, 1):
        lines.append(
            f"{i:3d} {row.name:{wide}s}  {_short(row.tokens):>7s} tokens  {row.flops:8.1e} FLOPs  "
            f"{_time(row.seconds):>9s}  peak {_size(row.memory):>8s}  {row.note}".rstrip()
        )
    total = sum(row.seconds for row in rows)
    flops = sum(row.flops for row in rows)
    lines.append(f"    {'in all':{wide}s}  {'':14s}  {flops:8.1e} FLOPs  {_time(total):>9s}")
    far = ", ".join(f"{n:,}: {work:.3g}" for n, work in arch.flops_by_length(decoder))
    lines.append(f"FLOPs per generated token by the tokens before it   {far}")
    return "\n".join(lines)


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _time(seconds: float) -> str:
    for size, unit in ((31_557_600, "years"), (86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"~{seconds / size:.3g} {unit}"
    return f"~{seconds:.0f} s"


def _size(number: float) -> str:
    return f"{number / 1e12:.3g} TB" if number >= 1e12 else f"{number / 1e9:.2g} GB"
