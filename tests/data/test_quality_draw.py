"""GPT-3's keep rule: a document stays if numpy.random.pareto(9) > 1 - score."""

import math

import numpy as np
import pytest

from etude.data import corpus
from etude.data.documents import Document
from etude.data.pipeline import Recipe
from etude.data.quality import Pareto
from tests.data.test_corpus import everything, made, prose


def odds(score):
    return math.log(score / (1 - score))


def test_the_chances_are_those_of_the_papers_rule():
    """(2 - score)^-9 by hand: 1.1^-9, 1.5^-9, 2^-9."""
    rule = Pareto()
    for score, chance in ((1.0, 1.0), (0.9, 0.4241), (0.5, 0.02601), (0.0, 0.001953)):
        assert rule.chance(score) == pytest.approx(chance, rel=1e-3)


def test_numpys_own_draw_keeps_as_many():
    drawn = np.random.default_rng(0).pareto(9, 400_000)
    for score in (0.95, 0.8, 0.5):
        share = float((drawn > 1 - score).mean())
        assert share == pytest.approx(Pareto().chance(score), abs=4 * math.sqrt(0.25 / 400_000))


def test_the_texts_that_stay_make_up_the_chance_and_are_the_same_each_time():
    texts = [f"document {n}" for n in range(20_000)]
    kept = [Pareto().keeps(text, odds(0.9)) for text in texts]
    assert sum(kept) / len(kept) == pytest.approx(0.4241, abs=0.014)  # 4 standard deviations
    assert kept == [Pareto().keeps(text, odds(0.9)) for text in texts]
    assert kept != [Pareto(seed=1).keeps(text, odds(0.9)) for text in texts]


def test_a_better_score_never_loses_what_a_worse_one_keeps():
    for n in range(2_000):
        text = f"document {n}"
        kept = [Pareto().keeps(text, odds(score)) for score in (0.3, 0.6, 0.9, 0.99)]
        assert kept == sorted(kept)


def test_certain_documents_stay_and_scores_far_out_do_not_overflow():
    assert all(Pareto().keeps(f"{n}", 1e6) for n in range(100))
    assert sum(Pareto().keeps(f"{n}", -1e6) for n in range(2_000)) < 20  # 4 expected


def test_references_stay_and_noise_is_drawn_once_each_without_copies(tmp_path):
    recipe = Recipe(bytes=1_000_000, keep="pareto")
    built = corpus.build(recipe, folder=tmp_path / "c", sources=everything())
    rows = {row["source"]: row for row in built.manifest["kept"]}
    assert rows["good"]["kept"] == rows["good"]["judged"]
    assert rows["noise"]["kept"] < rows["noise"]["judged"] / 4
    assert rows["noise"]["mean_score"] < rows["good"]["mean_score"]
    assert {d.copies for d in built.documents("general")} == {1}
    assert built.manifest["buckets"] == []
    source = built.manifest["sources"]["noise"]
    assert source["dropped"]["lost its draw on quality"] == 40 - rows["noise"]["kept"]
    assert "drawn by quality" in corpus.show(built)


def test_held_out_text_is_cut_from_training_documents_and_counted(tmp_path):
    texts = [prose(n) for n in range(80)]
    quoted = [n for n in range(80) if held(n)]
    assert quoted
    for n in range(60, 80):  # an essay that quotes a held-out one in the middle of others
        if n not in quoted:
            around = [prose(500 + n), prose(700 + n), texts[quoted[0]][:160], prose(900 + n)]
            texts[n] = " ".join(around)
            break
    source = made("s", "general", texts)
    plain = corpus.build(Recipe(bytes=1_000_000), folder=tmp_path / "a", sources=[source])
    recipe = Recipe(bytes=1_000_000, decontaminate=True)
    built = corpus.build(recipe, folder=tmp_path / "b", sources=[source])
    assert "contamination" not in plain.manifest
    counts = built.manifest["contamination"]
    assert counts["touched"] == 1
    assert counts["tests"] == len(quoted)
    quote = " ".join(texts[quoted[0]].split()[:13])
    assert any(quote in d.text for d in plain.documents("general"))
    assert not any(quote in d.text for d in built.documents("general"))
    row = built.manifest["sources"]["s"]
    assert row["read"] == row["kept"] + sum(row["dropped"].values())
    cut = sum(d.size_bytes for d in plain.documents("general"))
    assert cut - sum(d.size_bytes for d in built.documents("general")) == counts["cut_bytes"]


def held(n):
    from etude.data import mix

    return mix._draw(Document("", "general", "s", f"s/{n}", "")) < 0.06
