"""Associative recall of a model that was trained on the set `recall`: how many pairs it holds."""

import random

import torch

from etude.data.synth_recall import written
from etude.data.tasks import items
from etude.data.tasks_recall import Recall
from etude.evals.stats import Estimate, over_items
from etude.nn.decoder import Decoder
from etude.text.tokenizer import Tokenizer

ROWS = 64  # documents per forward


@torch.inference_mode()
def recalled(
    model: Decoder, tokenizer: Tokenizer, *, count: int = 128, seed: int = 0
) -> dict[int, Estimate]:
    """Read held-out documents and guess each value of the first repetition from its key.

    Chance is one in ten: the values are digits.

    Args:
        model: a decoder.
        tokenizer: its vocabulary.
        count: documents of each level.
        seed: of the documents.

    Returns:
        By the number of pairs, the share of right guesses, with an interval over documents.
    """
    digits = {tokenizer.encode(str(digit))[0] for digit in range(10)}
    found = {}
    for level, pairs in enumerate(Recall.pairs):
        rng = random.Random(seed)
        texts = [written(item, rng) for item in items("recall", level, count, seed, held=True)]
        shares: list[float] = []
        for at in range(0, count, ROWS):
            shares += _shares(model, tokenizer, texts[at : at + ROWS], digits)
        found[pairs] = over_items(shares)
    return found


def _shares(
    model: Decoder, tokenizer: Tokenizer, texts: list[str], digits: set[int]
) -> list[float]:
    """Return the share of right guesses in each document."""
    device = model.embed.weight.device
    rows, asked = [], []
    for text in texts:
        given, again, *_ = text.split(" |")
        first, second = tokenizer.encode(f"{given} |"), tokenizer.encode(again)
        rows.append(first + second)
        asked.append([n + len(first) for n, token in enumerate(second) if token in digits])
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    guesses = model(ids).argmax(-1).cpu()  # padding stands behind all that is asked
    return [
        sum(int(guesses[n, at - 1]) == rows[n][at] for at in places) / len(places)
        for n, places in enumerate(asked)
    ]
