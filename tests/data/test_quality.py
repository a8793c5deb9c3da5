import random

import numpy as np

from etude.data.documents import Document
from etude.data.quality import Buckets, buckets, describe, score

GOOD = "the river ran past an old mill where farmers brought wheat before winter".split()
BAD = "click subscribe offer password endpoint parameter invoke quota token deploy".split()


def sample(words: list[str], seed: int) -> str:
    return " ".join(random.Random(seed).choices(words, k=80))


def test_the_score_tells_reference_like_texts_from_noise_it_never_saw():
    texts = [sample(GOOD, i) for i in range(30)] + [sample(BAD, i) for i in range(30)]
    texts += [sample(GOOD, 99), sample(BAD, 99)]
    found = score(texts, reference=list(range(30)), noise=list(range(30, 60)))
    assert found[:30].min() > found[30:60].max()
    assert found[60] > 0 > found[61]


def test_no_text_teaches_the_model_that_scores_it():
    """Texts without a word in common: only a model that saw a text itself could know its label."""
    texts = [
        " ".join(f"{chr(97 + i // 6)}{chr(97 + i % 6)}x{n}" for n in range(30)) for i in range(60)
    ]
    found = score(texts, reference=list(range(0, 60, 2)), noise=list(range(1, 60, 2)))
    # measured: 0.005 apart, by the intercepts; with one model taught by all texts, 0.80
    assert abs(found[::2].mean() - found[1::2].mean()) < 0.1


def test_with_one_kind_of_text_all_score_alike():
    assert score(["a b", "c d"], reference=[0], noise=[]).tolist() == [0.0, 0.0]


def test_buckets_hold_their_share_of_the_bytes_worst_first():
    scores, sizes = np.array([0.9, 0.1, 0.5, 0.7]), [40, 10, 30, 20]
    # by score: 10, 30, 20, 40 bytes end at .1, .4, .6 and 1.0 of all
    assert buckets(scores, sizes, Buckets()).tolist() == [3, 0, 1, 2]


def test_the_best_bucket_is_seen_more_often_than_the_report_says_and_the_worst_never():
    rule = Buckets()
    assert rule.copies[0] == 0
    assert rule.copies[-1] > 3.2


def test_a_row_counts_what_fell_into_its_bucket():
    documents = [Document(t, "general", s, t, "") for t, s in (("aa", "x"), ("b", "y"))]
    rows = describe(documents, np.array([1.0, 3.0]), np.array([3, 3]), Buckets())
    assert rows[3] == {
        "bucket": 3,
        "copies": 4,
        "documents": 2,
        "bytes": 3,
        "mean_score": 2.0,
        "sources": {"x": 1, "y": 1},
    }
