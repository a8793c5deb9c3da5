"""Texts shared with tests are found and cut, and little else is."""

import random

from etude.data.contamination import Rule, decontaminate, run_length, runs, seen_before

VOCABULARY = [f"word{n}" for n in range(2_000)]


def prose(rng, words):
    return " ".join(rng.choices(VOCABULARY, k=words))


def test_a_run_is_blind_to_case_and_punctuation_and_ends_at_the_last_word():
    one, other = "The quick, brown fox - jumps.", "the QUICK brown (fox) jumps"
    assert [run.key for run in runs(one, 5)] == [run.key for run in runs(other, 5)]
    assert runs(other, 5)[0][1:] == (0, len(other))
    assert len(runs(other, 4)) == 2
    assert runs("too few words", 13) == []


def test_a_planted_test_is_cut_with_two_hundred_characters_around_it():
    rng = random.Random(0)
    before, test, after = prose(rng, 200), prose(rng, 13), prose(rng, 200)
    [pieces], counts = decontaminate([f"{before} {test} {after}"], [test])
    assert pieces == [before[:-199].strip(), after[199:].strip()]  # a space stands between
    assert (counts.runs, counts.touched, counts.pieces, counts.dropped) == (1, 1, 2, 0)


def test_twelve_shared_words_are_no_leak():
    rng = random.Random(1)
    test = prose(rng, 12)
    text = f"{prose(rng, 100)} {test} {prose(rng, 100)}"
    assert decontaminate([text], [test])[0] == [[text]]


def test_of_planted_tests_ninety_nine_in_a_hundred_are_found_and_of_others_under_one():
    rng = random.Random(2)
    tests = [prose(rng, 30) for _ in range(300)]
    texts, planted = [], []
    for number in range(600):
        leak = number % 2 == 0
        words = prose(rng, 120).split()
        if leak:  # part of a test, in other case and with other marks
            start = rng.randrange(0, 16)
            part = tests[number // 2].split()[start : start + 14]
            words[60:60] = [f"{word.upper()}," for word in part]
        texts.append(" ".join(words))
        planted.append(leak)
    left, counts = decontaminate(texts, tests)
    found = [pieces != [text] for pieces, text in zip(left, texts, strict=True)]
    recall = sum(f and p for f, p in zip(found, planted, strict=True)) / sum(planted)
    false = sum(f and not p for f, p in zip(found, planted, strict=True)) / 300
    assert recall >= 0.99
    assert false < 0.01
    assert counts.touched == sum(found)
    assert not any(test.upper() in piece for test in tests for pieces in left for piece in pieces)


def test_what_eleven_documents_share_is_a_phrase_and_stays():
    rng = random.Random(3)
    test = prose(rng, 13)
    texts = [f"{prose(rng, 80)} {test} {prose(rng, 80)}" for _ in range(11)]
    left, counts = decontaminate(texts, [test])
    assert left == [[text] for text in texts]
    assert counts.common == 1
    left, counts = decontaminate(texts[:10], [test])
    assert all(pieces != [text] for pieces, text in zip(left, texts, strict=False))
    assert counts.common == 0


def test_a_document_in_more_than_ten_pieces_is_dropped_and_one_in_ten_is_not():
    rng = random.Random(4)
    tests = [prose(rng, 13) for _ in range(10)]

    def cut(times):
        gaps = [prose(rng, 120) for _ in range(times + 1)]
        text = gaps[0] + "".join(f" {tests[n]} {gaps[n + 1]}" for n in range(times))
        return decontaminate([text], tests)

    [pieces], _ = cut(9)
    assert len(pieces) == 10
    [pieces], counts = cut(10)
    assert pieces == []
    assert counts.dropped == 1


def test_a_piece_under_two_hundred_characters_goes():
    rng = random.Random(5)
    test, after = prose(rng, 13), prose(rng, 200)
    [pieces], _ = decontaminate([f"{prose(rng, 10)} {test} {after}"], [test])
    assert len(pieces) == 1
    assert pieces[0] in after


def test_the_study_reads_runs_of_eight_to_thirteen_words_by_the_shortest_examples():
    assert run_length(["a b c"] * 100) == 8
    assert run_length([" ".join(["w"] * 40)] * 100) == 13
    assert run_length([" ".join(["w"] * 10)] * 6 + [" ".join(["w"] * 40)] * 94) == 10
    assert run_length(["a b c"] * 100, least=2) == 3


def test_an_example_that_training_text_holds_is_dirty():
    rng = random.Random(6)
    tests = [prose(rng, 20) for _ in range(4)]
    training = (text for text in [prose(rng, 50), f"{prose(rng, 9)} {tests[2]}"])
    assert seen_before(tests, training) == [False, False, True, False]


def test_the_sizes_are_fields():
    rng = random.Random(7)
    test = prose(rng, 6)
    rule = Rule(words=5, window=0, shortest=1)
    before, after = prose(rng, 30), prose(rng, 30)
    assert decontaminate([f"{before} {test} {after}"], [test], rule)[0] == [[before, after]]
