"""What the rollouts of an rl stage cost beside its training, by the length of the answers.

One decode step gives one token to each rollout under way. It reads every weight that any of them
uses once, and all that each remembers; it is as long as the slower of its bytes and its products.
Softmax attention remembers keys and values of every token before, lightning attention and Mamba a
state that does not grow: that is what they win here.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from etude import arch
from etude.arch.tensors import tensors
from etude.recipe.plan import ANSWER, PROMPT, TRAINING
from etude.recipe.stages import Recipe, Rl

ROWS = 256  # rollouts that a device decodes together, as the engine here; our choice
BYTES = 2  # of a weight and of a remembered number on the machine that samples: bfloat16
PER_BYTE = 989e12 / 3.35e12  # products per byte read of an H100 SXM, dense bfloat16 (data sheet)
USED = 0.7  # share of the bandwidth that a decode step reaches; our choice
PRODUCTS = 0.5  # share of the rate that its products reach, if they are what it waits for


@dataclass(frozen=True, slots=True)
class Decode:
    """One decode step of all rollouts under way, each behind `context` tokens.

    Attributes:
        context: tokens before.
        remembered: bytes of keys, values and states of one rollout.
        read: bytes of weights and of all rollouts' memory.
        flops: of the step.
        seconds: that it takes.
    """

    context: int
    remembered: int
    read: int
    flops: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RlCost:
    """The rollouts of a stage.

    Attributes:
        name: of the stage.
        rollouts: sampled in all.
        concurrent: under way at once.
        tokens: sampled, at the usual length.
        generation_flops: of sampling them, prompts included (each read once per problem).
        training_flops: of training on them.
        generation_seconds, training_seconds: on the given machine.
        share: of the time in generation.
        usual, longest: a decode step in the middle of an answer of the usual length, and at the end
            of the longest.
    """

    name: str
    rollouts: int
    concurrent: int
    tokens: int
    generation_flops: float
    training_flops: float
    generation_seconds: float
    training_seconds: float
    share: float
    usual: Decode
    longest: Decode

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return asdict(self)


def machine_bandwidth() -> float:
    """Measure this machine's memory in bytes read per second, in a process of its own."""
    found = subprocess.run([sys.executable, "-c", _SUM], capture_output=True, text=True, check=True)
    return float(found.stdout)


_SUM = """
import time, numpy
a = numpy.ones(32 << 20, dtype=numpy.float32)
best, end = 1e9, time.perf_counter() + 0.2
while (start := time.perf_counter()) < end:
    a.max()
    best = min(best, time.perf_counter() - start)
print(a.nbytes / best)
"""


def rl_costs(
    recipe: Recipe,
    decoder: arch.Decoder,
    rate: float,
    bandwidth: float = 0.0,
    *,
    devices: int = 1,
    others: Mapping[str, arch.Decoder] | None = None,
) -> dict[str, RlCost]:
    """Return `rl_cost` of each rl stage by its name; `others` as in `plan.cost`."""
    plans = others or {}
    return {
        stage.name: rl_cost(stage, plans.get(stage.name, decoder), rate, bandwidth, devices=devices)
        for stage in recipe.stages
        if isinstance(stage, Rl)
    }


def rl_cost(
    stage: Rl, decoder: arch.Decoder, rate: float, bandwidth: float = 0.0, *, devices: int = 1
) -> RlCost:
    """Return what the rollouts of a stage cost.

    Args:
        stage: of a resolved recipe.
        decoder: the policy.
        rate: FLOP/s of the matrix product of one device.
        bandwidth: bytes per second of its memory; 0 takes that of an H100 at this rate.
        devices: that share the work and the weights evenly.
    """
    rate, speed = rate * devices, (bandwidth or rate / PER_BYTE) * devices
    rollout, turns = stage.rollout, max(one.turns for one in stage.environments)
    batch = rollout.prompts * rollout.per_prompt
    rollouts, at_once = stage.steps * batch, min(batch, ROWS * devices)
    room = max(1, decoder.max_length - PROMPT)  # an attempt ends where the context does
    longest = min(rollout.max_tokens * turns, room)
    usual = min(int(rollout.max_tokens * ANSWER) * turns, room)
    machine = {"rate": rate * PRODUCTS, "bandwidth": speed * USED}
    middle = _decode(decoder, at_once, PROMPT + usual // 2, **machine)
    end = _decode(decoder, at_once, PROMPT + longest, **machine)
    prompts = stage.steps * rollout.prompts * PROMPT * arch.flops(decoder, PROMPT / 2)
    generation = rollouts * usual * middle.flops / at_once + prompts
    seconds = rollouts * usual / at_once * middle.seconds + prompts / (rate * PRODUCTS)
    length = PROMPT + usual
    training = arch.train_flops(decoder, length) * length * rollouts
    trained = training / (rate * TRAINING)
    share = seconds / (seconds + trained)
    flops = generation, training
    return RlCost(
        stage.name,
        rollouts,
        at_once,
        rollouts * usual,
        *flops,
        seconds,
        trained,
        share,
        middle,
        end,
    )


def _decode(
    decoder: arch.Decoder, rows: int, context: int, *, rate: float, bandwidth: float
) -> Decode:
    remembered = arch.cache_bytes(decoder, context, bytes_per=BYTES)
    read = BYTES * weights_read(decoder, rows) + rows * remembered
    flops = rows * arch.flops(decoder, context)
    return Decode(context, remembered, int(read), flops, max(read / bandwidth, flops / rate))


def weights_read(decoder: arch.Decoder, rows: int) -> float:
    """Return how many weights a step of `rows` tokens reads: an expert if any of them chose it.

    Tokens are taken to choose their experts evenly and each for itself.
    """
    total = 0.0
    for weight in tensors(decoder):
        if weight.trained and weight.name.split(".")[0] not in ("embed", "positions", "mtp"):
            total += weight.size * (1 - (1 - weight.active / weight.size) ** rows)
    return total


def told(costs: Sequence[RlCost]) -> str:
    """Return the costs as text, a block per stage."""
    lines = []
    for one in costs:
        lines += [
            f"{one.name}: {one.rollouts:,} rollouts, {one.concurrent:,} at once, "
            f"{one.tokens:,} tokens sampled",
            f"    generation {one.generation_flops:.2g} FLOPs, training {one.training_flops:.2g};"
            f" {one.share:.0%} of the time is generation",
        ]
        for name, step in (("usual", one.usual), ("longest", one.longest)):
            lines.append(
                f"    a decode step behind {step.context:,} tokens ({name}): reads "
                f"{_bytes(step.read)}, {_bytes(step.remembered)} per rollout, "
                f"{step.flops:.2g} FLOPs, {step.seconds * 1e3:.3g} ms"
            )
    return "\n".join(lines)


def _bytes(number: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"
