"""The largest attention score on held-out documents: what QK-clip bounds, seen from outside."""

import math
from collections.abc import Iterable, Sequence

import torch

from etude.evals.stats import Estimate
from etude.nn.decoder import Decoder


@torch.inference_mode()
def largest_score(
    model: Decoder, documents: Iterable[Sequence[int]], *, window: int | None = None
) -> Estimate:
    """Return the largest scaled score of any head and layer over the starts of some documents.

    Args:
        model: any decoder.
        documents: token ids of each text.
        window: tokens of each that are read; None is the model's length.

    Returns:
        The maximum, which has no interval, and the number of documents; NaN where nothing takes a
        softmax of scores.
    """
    window = min(window or model.arch.max_length, model.arch.max_length)
    device, tops = model.embed.weight.device, []
    training = model.training
    model.eval()
    for ids in documents:
        row = torch.tensor([list(ids[:window])], device=device)
        peaks = model(row, labels=row, peaks=True).peaks
        tops.append(max((float(peak.top.max()) for peak in peaks), default=math.nan))
    model.train(training)
    return Estimate(max(tops, default=math.nan), math.nan, math.nan, len(tops))
