"""Bits per byte by the place in a long text: what a model still reads beyond its trained length.

A long text is read in one piece, and each of its tokens is scored once, with all that stands before
it as context. Places are gathered into buckets. Different buckets hold different tokens, so a model
is compared with another in the same bucket, not one bucket with the next.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch

from etude.evals.bits import IGNORED, ratio
from etude.evals.stats import Estimate
from etude.nn.decoder import Decoder
from etude.text.tokenizer import Tokenizer

TOKENS = 4096  # of one forward, or one text where it is longer


def stretches(
    tokenizer: Tokenizer, texts: Iterable[str], *, length: int, most: int
) -> list[list[int]]:
    """Cut texts into stretches of exactly `length` tokens; what is left over is not read.

    Args:
        tokenizer: vocabulary.
        texts: long documents.
        length: tokens of each stretch.
        most: stretches in all; taken from the texts in turn, so that all of them count.
    """
    cut = [tokenizer.encode(text) for text in texts]
    longest = max(map(len, cut), default=0)
    begins = range(0, longest - length + 1, length)
    found = [ids[at : at + length] for at in begins for ids in cut if at + length <= len(ids)]
    return found[:most]


def by_place(
    model: Decoder, tokenizer: Tokenizer, rows: Sequence[Sequence[int]], edges: Sequence[int]
) -> dict[int, Estimate]:
    """Measure bits per byte between each two edges.

    Args:
        model: any decoder.
        tokenizer: says how many bytes a token stands for.
        rows: texts of at least the last edge, of one length.
        edges: places at which a bucket ends; the first begins at place 1, whose context is 0.

    Returns:
        By upper edge, total bits over total bytes with a 95% interval from the spread over texts.
    """
    sizes = {token: len(tokenizer.decode_bytes([token])) for token in set().union(*rows)}
    step = max(1, TOKENS // max(map(len, rows), default=1))
    training = model.training
    model.eval()
    parts = [_bits(model, rows[at : at + step]) for at in range(0, len(rows), step)]
    model.train(training)
    bits = torch.cat(parts) if parts else torch.zeros(0, 0)
    found = {}
    for low, high in pairwise((1, *edges)):
        here = bits[:, low - 1 : high - 1].sum(dim=1).tolist()
        there = [sum(sizes[token] for token in row[low:high]) for row in rows]
        found[high] = ratio(here, there)
    return found


@torch.inference_mode()
def _bits(model: Decoder, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the bits [rows, length - 1] of each token but the first."""
    ids = torch.tensor([list(row) for row in rows], device=model.embed.weight.device)
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = ids[:, 1:]
    return (model(ids, labels=labels, mtp=False).logp[:, :-1].double() / -math.log(2)).cpu()
