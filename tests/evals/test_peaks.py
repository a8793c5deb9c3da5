"""The largest score on held-out documents is the largest that any pass over them records."""

import math

import torch

from etude.evals.peaks import largest_score
from etude.models.checkpoint import create


def test_it_is_the_maximum_over_documents_layers_and_heads_up_to_the_window():
    model = create("kimi_k2", "tiny", seed=0)
    texts = [[5, 6, 7, 8, 9, 3], [400, 2, 11], [1, 300, 20, 77, 301]]
    found = largest_score(model, texts, window=4)
    rows = [torch.tensor([ids[:4]]) for ids in texts]
    peaks = [peak for row in rows for peak in model(row, labels=row, peaks=True).peaks]
    assert len(peaks) == 3 * 4
    assert found.value == max(float(peak.top.max()) for peak in peaks)
    assert found.n == 3 and math.isnan(found.low)
    assert largest_score(model, texts).value >= found.value
