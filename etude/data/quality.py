"""Quality: a classifier scores documents; the score decides whether and how often one is seen.

Two rules. Buckets, as in GLM-4.5 (arXiv:2508.06471, section 2.2): documents fall into buckets by
score; the worst is dropped, the best is seen more than 3.2 times. A draw, as in GPT-3
(arXiv:2005.14165, appendix A): a document stays if a heavy-tailed number exceeds what its score
lacks, so that a few poor ones stay.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.data.documents import Document, stable_hash

PIECE = 1_500  # characters the classifier looks at in one go, so that length tells it nothing


@dataclass(frozen=True, slots=True)
class Buckets:
    """Where the buckets lie and how often each is seen.

    Args:
        edges: upper borders as shares of the scored bytes, worst first; the rest is the last.
        copies: times a document of each bucket is seen in one pass; 0 drops it. The report's "more
            than 3.2 epochs" for the best bucket is 4 here, with whole copies.
        seed: splits documents into the two halves of cross-fitting.
    """

    edges: tuple[float, ...] = (0.1, 0.4, 0.75)
    copies: tuple[int, ...] = (0, 1, 2, 4)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Pareto:
    """A document stays if `numpy.random.pareto(alpha) > 1 - score` (GPT-3, appendix A).

    Args:
        alpha: 9 in the paper, where it matched the scores of a good set.
        seed: of the draws, which otherwise depend on the text alone.
    """

    alpha: float = 9.0
    seed: int = 0

    def chance(self, score: float) -> float:
        """Return the chance to stay at a score in [0, 1]: (2 - score) ** -alpha.

        numpy's number is the Lomax one, which starts at 0: P(X > x) = (1 + x) ** -alpha. With the
        classical one, which starts at 1, every document would stay.
        """
        return (2.0 - score) ** -self.alpha

    def keeps(self, text: str, odds: float) -> bool:
        """Return whether a document of these log-odds stays; the same text always gets one draw."""
        score = 0.5 + 0.5 * math.tanh(odds / 2)  # the classifier's probability
        return stable_hash("pareto", str(self.seed), text) / 2.0**64 < self.chance(score)


def score(texts: list[str], reference: list[int], noise: list[int], *, seed: int = 0) -> np.ndarray:
    """Return each text's log-odds of being reference-like, by logistic regression on hashed words.

    A text never teaches the model that scores it: two models learn from one half each and score
    the other half (cross-fitting), so that a reference text has to earn its score.

    Args:
        texts: documents to score.
        reference: indices of texts known to be good.
        noise: indices of texts known to be noisy.
        seed: of the split into halves.

    Returns:
        float array of `len(texts)`.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    hashed = HashingVectorizer(n_features=2**16, ngram_range=(1, 2), alternate_sign=False)
    half = np.array([stable_hash(f"half {seed}", text) % 2 for text in texts])
    owner, cut = _pieces(texts)
    features: Any = hashed.transform(cut)  # a sparse matrix, which scipy's types do not index
    label = np.full(len(texts), -1)
    label[reference], label[noise] = 1, 0
    found = np.zeros(len(texts))
    for side in (0, 1):
        teach = (label[owner] >= 0) & (half[owner] != side)
        if len(set(label[owner][teach])) < 2:
            return np.zeros(len(texts))  # too few texts to learn from: all alike
        model = LogisticRegression(class_weight="balanced", max_iter=200)
        model.fit(features[teach], label[owner][teach])
        judged = half[owner] == side
        odds = np.asarray(model.decision_function(features[judged]), dtype=float)
        total = np.bincount(owner[judged], weights=odds, minlength=len(texts))
        count = np.bincount(owner[judged], minlength=len(texts))
        found = np.where(half == side, total / np.maximum(count, 1), found)
    return found


def _pieces(texts: list[str], most: int = 4) -> tuple[np.ndarray, list[str]]:
    """Cut `most` pieces off each text; return (index of the text of each piece, pieces)."""
    owner, cut = [], []
    for index, text in enumerate(texts):
        for start in range(0, max(len(text), 1), PIECE)[:most]:
            owner.append(index)
            cut.append(text[start : start + PIECE])
    return np.array(owner), cut


def buckets(scores: np.ndarray, sizes: list[int], rule: Buckets) -> np.ndarray:
    """Return the bucket of each document, 0 the worst; buckets hold given shares of the bytes."""
    order = np.lexsort((np.arange(len(scores)), scores))
    below = np.cumsum(np.array(sizes)[order]) / max(sum(sizes), 1)
    found = np.zeros(len(scores), dtype=int)
    found[order] = np.searchsorted(np.array(rule.edges), below, side="left")
    return found


def describe(
    documents: list[Document], scores: np.ndarray, bucket: np.ndarray, rule: Buckets
) -> list[dict]:
    """Return one row a bucket for the manifest: documents, bytes, copies, mean score, sources."""
    rows = []
    for number, copies in enumerate(rule.copies):
        here = [i for i in range(len(documents)) if bucket[i] == number]
        sources: dict[str, int] = {}
        for i in here:
            sources[documents[i].source] = sources.get(documents[i].source, 0) + 1
        rows.append(
            {
                "bucket": number,
                "copies": copies,
                "documents": len(here),
                "bytes": sum(documents[i].size_bytes for i in here),
                "mean_score": round(float(np.mean(scores[here])), 2) if here else None,
                "sources": dict(sorted(sources.items())),
            }
        )
    return rows


def describe_draw(sources: list[str], scores: np.ndarray, kept: list[bool]) -> list[dict]:
    """Return one row a source for the manifest: documents judged, kept, and their mean log-odds."""
    rows = []
    for source in dict.fromkeys(sources):
        here = [i for i, name in enumerate(sources) if name == source]
        mean = round(float(np.mean(scores[here])), 2)
        stay = sum(kept[i] for i in here)
        rows.append({"source": source, "judged": len(here), "kept": stay, "mean_score": mean})
    return rows
