"""What is timed: the same work on both sides, as two functions without arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from etude import arch
from etude.engine.generate import generate
from etude.nn.decoder import Decoder
from etude.nn.int8 import Int8Linear

ROWS, LENGTH = 8, 512  # a training step
PROMPT, NEW = 16, 64  # one greedy answer
MIXED = (
    16,
    24,
    40,
    64,
    96,
    128,
    160,
    192,
    16,
    32,
    48,
    80,
    112,
    144,
    176,
    208,
)  # prompts of a batch
Side = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Work:
    """One comparison.

    Attributes:
        ours, theirs: the work; both return what they made, for a check that it is the same.
        tokens: that one run of either side works on.
        flops: floating-point operations of that, where the products set the limit; else 0.
        bytes: weights read, where reading them sets the limit; else 0.
    """

    ours: Side
    theirs: Side
    tokens: int
    flops: float = 0.0
    bytes: float = 0.0


def train(ours: Decoder, theirs: Any) -> Work:
    """One step on the same rows with the same optimizer: forward, loss, backward, update."""
    ids = _draw(ours, (ROWS, LENGTH))
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    steps = [torch.optim.AdamW(m.parameters(), lr=1e-4, foreach=True) for m in (ours, theirs)]

    def step_ours() -> None:
        loss = -ours(ids, labels=labels).logp.sum() / (ROWS * (LENGTH - 1))
        _update(loss, steps[0])

    def step_theirs() -> None:
        theirs.train()
        _update(theirs(input_ids=ids, labels=ids, use_cache=False).loss, steps[1])

    flops = arch.train_flops(ours.arch, LENGTH) * ids.numel()
    return Work(step_ours, step_theirs, ids.numel(), flops)


def prefill(length: int) -> Callable[[Decoder, Any], Work]:
    """Read one prompt of `length` tokens and give the token after it."""

    def work(ours: Decoder, theirs: Any) -> Work:
        ids = _draw(ours, (1, length))
        flops = arch.flops(ours.arch, length / 2) * length
        return _answers(ours, theirs, ids.tolist(), 1, tokens=length, flops=flops)

    return work


def decode(ours: Decoder, theirs: Any) -> Work:
    """One greedy answer to one short prompt, prompt included in the time."""
    ids = _draw(ours, (1, PROMPT))
    counts = arch.count(ours.arch)
    read = (1.0 if isinstance(ours.head, Int8Linear) else 4.0) * counts.active_head * NEW
    return _answers(ours, theirs, ids.tolist(), NEW, tokens=NEW, read=read)


def batch(ours: Decoder, theirs: Any) -> Work:
    """Greedy answers to sixteen prompts of different lengths."""
    prompts = [_draw(ours, (1, n), seed=n)[0].tolist() for n in MIXED]
    return _answers(ours, theirs, prompts, NEW, tokens=NEW * len(prompts))


WORKS: dict[str, Callable[[Decoder, Any], Work]] = {
    "train": train,
    "prefill-2k": prefill(2048),
    "prefill-16k": prefill(16_384),
    "decode": decode,
    "decode-16": batch,
}


def _answers(
    ours: Decoder,
    theirs: Any,
    prompts: list[list[int]],
    new: int,
    *,
    tokens: int,
    flops: float = 0.0,
    read: float = 0.0,
) -> Work:
    """Greedy answers of `new` tokens; transformers gets the prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    theirs.eval()

    def answer_ours() -> list[list[int]]:
        return [row.tokens for row in generate(ours, prompts, max_tokens=new)]

    def answer_theirs() -> list[list[int]]:
        made = theirs.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
        return made[:, longest:].tolist()

    return Work(answer_ours, answer_theirs, tokens, flops, read)


def _draw(model: Decoder, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.arch.vocab, shape, generator=generator)


def _update(loss: torch.Tensor, step: torch.optim.Optimizer) -> None:
    loss.backward()
    step.step()
    step.zero_grad(set_to_none=True)
