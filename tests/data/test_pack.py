"""Packing loses no token and no label, and teaches nothing across a border."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.pack import IGNORED, PACKERS, BestFit, Padded, Span, Truncated, best_fit, fill
from etude.data.tokens import TokenSet

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def _filled(tokens, row, length):
    ids, segments, pos = (np.zeros(length, np.int64) for _ in range(3))
    labels = np.full(length, IGNORED)
    counted = fill(tokens, row, ids, labels, segments, pos)
    return ids, labels, segments, pos, counted


def _covered(rows):
    return Counter((s.document, t) for row in rows for s in row for t in range(s.start, s.stop))


def _everything(sizes):
    return Counter((d, t) for d, size in enumerate(sizes) for t in range(size))


def test_two_documents_in_a_row_give_the_labels_of_the_worked_example(tmp_path):
    """ids [0,1,2 | 3,0]: position 2 ends a document and the row's last has no successor."""
    tokens = TokenSet.write(tmp_path / "set", [([0, 1, 2], None), ([3, 0], None)], 4)
    ids, labels, segments, pos, counted = _filled(tokens, [Span(0, 0, 3), Span(1, 0, 2)], 5)
    assert ids.tolist() == [0, 1, 2, 3, 0]
    assert labels.tolist() == [1, 2, IGNORED, 0, IGNORED]
    assert segments.tolist() == [1, 1, 1, 2, 2]
    assert pos.tolist() == [0, 1, 2, 0, 1]
    assert counted == 3


def test_the_last_token_of_a_cut_still_learns_its_successor(tmp_path):
    tokens = TokenSet.write(tmp_path / "set", [(list(range(6)), None)], 6)
    _, labels, segments, pos, _ = _filled(tokens, [Span(0, 2, 5)], 4)
    assert labels.tolist() == [3, 4, 5, IGNORED]
    assert segments.tolist() == [1, 1, 1, 0]
    assert pos.tolist() == [0, 1, 2, 0]


def test_a_masked_token_is_read_but_never_a_target(tmp_path):
    mask = [False, False, True, False, True]
    tokens = TokenSet.write(tmp_path / "set", [([5, 6, 7, 8, 9], mask)], 10)
    ids, labels, _, _, counted = _filled(tokens, [Span(0, 0, 5)], 5)
    assert ids.tolist() == [5, 6, 7, 8, 9]
    assert labels.tolist() == [IGNORED, 7, IGNORED, 9, IGNORED]
    assert counted == 2


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, length=st.integers(2, 24))
def test_best_fit_holds_every_token_once_and_cuts_only_what_is_too_long(sizes, length):
    rows = best_fit(range(len(sizes)), sizes, length)
    assert _covered(rows) == _everything(sizes)
    assert max(sum(span.size for span in row) for row in rows) <= length
    for row in rows:
        for span in row:
            assert span.size == sizes[span.document] or sizes[span.document] > length


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, length=st.integers(2, 24))
def test_best_fit_leaves_no_two_rows_that_would_fit_into_one(sizes, length):
    rows = best_fit(range(len(sizes)), sizes, length)
    fullness = sorted(sum(span.size for span in row) for row in rows)
    assert len(fullness) < 2 or fullness[0] + fullness[1] > length


def test_best_fit_takes_the_fullest_row_with_room():
    """By hand: 7 and 6 leave 3 and 4; 4 goes to the second row, 3 to the first, 2 opens a third."""
    rows = best_fit([0, 1, 2, 3, 4], [2, 6, 7, 3, 4], 10)
    assert [[span.document for span in row] for row in rows] == [[2, 3], [1, 4], [0]]


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, length=st.integers(2, 24), seed=st.integers(0, 9))
def test_an_epoch_of_every_packer_holds_every_token_once(sizes, length, seed):
    for packer in (Truncated, BestFit):
        stream = packer(np.array(sizes), length, seed, "a")
        rows = []
        while stream.epochs() < 1 - 1e-9:
            rows.append(stream.next())
        covered, wanted = _covered(rows), _everything(sizes)
        if packer is BestFit:
            assert covered == wanted
        else:  # the last row runs on into the next epoch
            assert not wanted - covered
            assert sum((covered - wanted).values()) == len(rows) * length - sum(sizes)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, length=st.integers(2, 24), kind=st.sampled_from(["truncate", "best_fit"]))
def test_labels_are_the_successors_in_the_same_document_and_none_is_lost(
    tmp_path_factory, sizes, length, kind
):
    docs, first = [], 0
    for size in sizes:  # every token has its own id, so a label names its document
        docs.append(list(range(first, first + size)))
        first += size
    owner = np.repeat(np.arange(len(sizes)), sizes)
    tokens = TokenSet.write(
        tmp_path_factory.mktemp("set") / "set", [(d, None) for d in docs], first
    )
    stream, seen = PACKERS[kind](tokens.lengths, length, 0, "a"), set()
    while stream.epochs() < 1 - 1e-9:
        ids, labels, segments, pos, counted = _filled(tokens, stream.next(), length)
        learnt = labels != IGNORED
        assert counted == learnt.sum()
        assert (labels[learnt] == ids[learnt] + 1).all()
        assert (owner[labels[learnt]] == owner[ids[learnt]]).all()
        assert (segments[learnt] > 0).all()
        assert (
            np.flatnonzero(pos == 0)[: segments.max()]
            == np.flatnonzero(np.diff(segments, prepend=0) > 0)
        ).all()
        seen |= set(labels[learnt].tolist())
    assert seen == {t for d in docs for t in d[1:]}


def test_truncation_cuts_at_other_places_in_the_next_epoch():
    sizes = np.full(50, 7)
    stream = Truncated(sizes, 16, 0, "a")
    rows = [stream.next() for _ in range(44)]
    cuts = [
        {(s.document, s.start) for row in half for s in row if s.start}
        for half in (rows[:22], rows[22:])
    ]
    assert cuts[0] != cuts[1]


def test_padding_leaves_out_what_is_longer_than_a_row():
    stream = Padded(np.array([3, 30, 4, 8]), 8, 0, "a")
    assert stream.dropped == 1
    first = sorted(stream.next()[0] for _ in range(3))
    assert first == [Span(0, 0, 3), Span(2, 0, 4), Span(3, 0, 8)]


@pytest.mark.parametrize("kind", list(PACKERS))
def test_a_stream_goes_on_from_its_cursor(kind):
    sizes = np.random.default_rng(0).integers(1, 9, 700)
    whole = PACKERS[kind](sizes, 8, 3, "a")
    expected = []
    for _ in range(1500):  # several windows and epochs
        expected.append((list(whole.cursor), whole.next()))
    for at in (0, 1, 255, 600, 1499):
        resumed = PACKERS[kind](sizes, 8, 3, "a")
        resumed.cursor = list(expected[at][0])
        assert [resumed.next() for _ in range(1500 - at)][:5] == [
            row for _, row in expected[at : at + 5]
        ]
