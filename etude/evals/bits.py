"""Bits per byte of held-out documents: a measure that does not depend on the vocabulary."""

import math
from collections.abc import Iterable, Sequence

import torch

from etude.evals.stats import Estimate, quantile
from etude.nn.decoder import Decoder

IGNORED = -100
ROWS = 16  # windows per forward


def bits_per_byte(
    model: Decoder, documents: Iterable[tuple[Sequence[int], int]], *, window: int | None = None
) -> Estimate:
    """Measure how many bits the model needs per byte of text.

    A document longer than a window is read in windows that overlap by half, and each of its tokens
    but the first is scored once, with at least half a window before it where the document has it.

    Args:
        model: any decoder.
        documents: token ids of each text, and the bytes that all but the first token stand for.
        window: tokens read at once; None is the model's length.

    Returns:
        Total bits over total bytes, with a 95% interval from the spread over documents.
    """
    window = min(window or model.arch.max_length, model.arch.max_length)
    texts = [(list(ids), size) for ids, size in documents]
    rows = [(n, *row) for n, (ids, _) in enumerate(texts) for row in windows(len(ids), window)]
    rows.sort(key=lambda row: row[2] - row[1])  # like lengths together
    bits = [0.0] * len(texts)
    training = model.training
    model.eval()
    for at in range(0, len(rows), ROWS):
        part = rows[at : at + ROWS]
        for (n, *_), logp in zip(part, _scores(model, texts, part), strict=True):
            bits[n] -= logp / math.log(2)
    model.train(training)
    return ratio(bits, [size for _, size in texts])


def windows(length: int, window: int) -> list[tuple[int, int, int]]:
    """Return (begin, end, first target) of each window; the targets are 1 to `length` - 1, once."""
    found, scored = [], 1
    while scored < length:
        end = min(length, window) if scored == 1 else min(length, scored + window // 2)
        found.append((max(0, end - window), end, scored))
        scored = end
    return found


@torch.inference_mode()
def _scores(
    model: Decoder,
    texts: Sequence[tuple[list[int], int]],
    rows: Sequence[tuple[int, int, int, int]],
) -> list[float]:
    device = model.embed.weight.device
    longest = max(end - begin for _, begin, end, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)  # padding behind is never looked at
    labels = torch.full_like(ids, IGNORED)
    for row, (n, begin, end, first) in enumerate(rows):
        own = torch.tensor(texts[n][0][begin:end])
        ids[row, : len(own)] = own
        labels[row, first - 1 - begin : len(own) - 1] = own[first - begin :]
    scores = model(ids.to(device), labels=labels.to(device))
    return scores.logp.double().sum(dim=1).tolist()


def ratio(bits: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """Return the bits of some texts over their bytes, with an interval over texts."""
    # a ratio estimator: documents are the independent units, not tokens, and they are few
    total, n = sum(sizes), len(sizes)
    if not total:
        return Estimate(math.nan, math.nan, math.nan, n)
    value = math.fsum(bits) / total
    spread = math.fsum((b - value * s) ** 2 for b, s in zip(bits, sizes, strict=True))
    half = quantile(n) * math.sqrt(spread * n / (n - 1)) / total if n > 1 else math.nan
    return Estimate(value, value - half, value + half, n)
