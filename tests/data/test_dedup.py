import random

from etude.data.dedup import Near, exact_duplicates, near_duplicates

WORDS = [a + b for a in "bcdfghklmnprst" for b in ("ado", "elin", "imor", "ona", "usk", "ytre")]


def text(seed: int, count: int = 300) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def test_texts_with_the_same_words_are_equal_whatever_their_case_and_marks():
    texts = ["One, two\nthree.", "four five", "one  TWO three", "one two"]
    assert exact_duplicates(texts) == [None, None, 0, None]


def test_a_copy_with_a_few_words_changed_is_found_and_points_to_the_first():
    original, other = text(1), text(2)
    copy = list(original)
    for place in (40, 150, 260):  # 15 of 296 runs of five differ: Jaccard 281 / 311 = 0.90
        copy[place] = "changed"
    texts = [" ".join(t) for t in (other, original, copy, text(3))]
    assert near_duplicates(texts) == [None, None, 1, None]


def test_a_text_that_shares_a_third_of_its_runs_stays():
    half = text(4)[:150] + text(5)[:150]  # Jaccard about 146 / 446 = 0.33, threshold 0.7
    assert near_duplicates([" ".join(text(4)), " ".join(half)]) == [None, None]


def test_a_sibling_of_a_held_out_text_falls_where_it_would_stay_beside_a_trained_one():
    sibling = text(4)[:220] + text(5)[:80]  # Jaccard about 216 / 376 = 0.57
    texts = [" ".join(text(4)), " ".join(sibling)]
    assert near_duplicates(texts, held=1) == [None, 0]
    assert near_duplicates(texts, held=0) == [None, None]
    assert near_duplicates(texts, held=2) == [None, None]


def test_long_texts_are_compared_by_their_smallest_hashes():
    long = text(6, 9_000)
    edited = ["preface", *long[:4_000], "inserted", *long[4_000:]]
    assert near_duplicates([" ".join(long), " ".join(edited)]) == [None, 0]
    assert near_duplicates([" ".join(long), " ".join(text(7, 9_000))]) == [None, None]


def test_a_dropped_text_makes_no_other_fall():
    """B repeats A and is dropped; C is near B but not near A, and stays."""
    a = text(8)
    b, c = list(a), list(a)
    for place in range(10, 90, 20):
        b[place] = "one"
    for place in range(10, 190, 10):
        c[place] = "one"  # 18 words: about 90 of 296 runs differ from A, Jaccard 0.53
    assert near_duplicates([" ".join(t) for t in (a, b, c)], rule=Near(permutations=128)) == [
        None,
        0,
        None,
    ]


def test_an_empty_text_is_no_fault():
    assert near_duplicates(["", "a b c"]) == [None, None]
