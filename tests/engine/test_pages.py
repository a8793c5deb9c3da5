"""Pages and slots: who holds what, what is found again, and what makes room."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.engine.pages import Pages, follow, root
from etude.errors import EtudeError


def parts(pages, owner, tokens):
    """Key and tokens of each whole page of a prompt."""
    key = root(owner)
    for at in range(0, len(tokens) - pages.size + 1, pages.size):
        part = tuple(tokens[at : at + pages.size])
        key = follow(key, part)
        yield key, part


def known(pages, owner, tokens, held):
    """Make the content of held pages known."""
    for part, page in zip(parts(pages, owner, tokens), held, strict=True):
        pages.publish(*part, page)


def find(pages, owner, tokens):
    """Nodes with the start of a prompt."""
    found = [pages.find(*part) for part in parts(pages, owner, tokens)]
    return found[: found.index(None)] if None in found else found


def test_a_prefix_is_found_by_its_owner_up_to_the_first_other_id():
    pages = Pages(8, 2)
    held = pages.take(3)
    known(pages, "one", [1, 2, 3, 4, 5, 6], held)
    found = find(pages, "one", [1, 2, 3, 4, 5, 7])
    assert [node.page for node in found] == held[:2]
    assert len(find(pages, "one", [1, 2, 3, 4, 5, 6])) == 3
    assert len(find(pages, "one", [1, 2, 3, 4, 5])) == 2  # only whole pages
    assert find(pages, "two", [1, 2, 3, 4, 5, 6]) == find(pages, "one", [3, 4]) == []


def test_equal_content_has_one_page():
    pages = Pages(4, 1)
    [first], [second], [part] = pages.take(1), pages.take(1), parts(pages, "", [7])
    assert pages.publish(*part, first) is pages.publish(*part, second)


def test_the_longest_unused_leaf_makes_room_first():
    pages = Pages(4, 1)
    stem = pages.take(2)
    known(pages, "", [1, 2], stem)
    pages.release(stem)
    other = pages.take(1)
    known(pages, "", [9], other)
    pages.release(other)
    assert pages.available == 4 and pages.held == 0
    assert pages.take(2) == [3, stem[1]]  # the free one, then the end of the older prompt
    assert len(find(pages, "", [1, 2])) == 1 and len(find(pages, "", [9])) == 1
    assert pages.take(3) is None


def test_a_held_page_is_never_given_away_and_none_goes_twice():
    pages = Pages(2, 1)
    held = pages.take(1)
    known(pages, "", [1], held)
    pages.hold(held)
    pages.release(held)
    assert pages.take(2) is None
    pages.release(held)
    with pytest.raises(EtudeError, match="let go twice"):
        pages.release(held)


def test_snapshots_leave_with_their_page_or_when_longest_unused():
    pages = Pages(3, 1, slots=[6, 5])
    held = pages.take(3)
    known(pages, "", [1, 2, 3], held)
    nodes = find(pages, "", [1, 2, 3])
    assert [pages.snap(node) for node in nodes[:2]] == [5, 6]
    pages.used(nodes[0])
    assert pages.snap(nodes[2]) == 6 and nodes[1].snapshot == -1
    pages.release(held)
    pages.take(1)  # the page of the last id
    assert pages.snapshots == 1 and pages._slots == [6]
    assert Pages(1, 1).snap(nodes[2]) == -1


def test_pages_of_a_band_are_behind_once_no_query_reads_them():
    for reach, size in ((1, 1), (1, 4), (3, 2), (5, 4), (8, 4)):
        pages = Pages(9, size, reach=reach)
        for tokens in range(1, 30):
            read = range(max(0, min(tokens - reach + 1, tokens - 1)), tokens)  # by the next, and it
            assert pages.behind(tokens) <= read[0] // size  # nothing that is read is let go
            assert pages.behind(tokens) >= (tokens - reach) // size  # and all but one is
    assert Pages(9, 4).behind(30) == 0


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_counts_are_right_after_any_sequence_of_requests(seed):
    rng = random.Random(seed)
    pages, live = Pages(rng.randrange(1, 9), rng.randrange(1, 3)), []
    for _ in range(60):
        if live and rng.random() < 0.5:
            pages.release(live.pop(rng.randrange(len(live))))
            pages.check(live)
            continue
        row = [rng.randrange(2) for _ in range(rng.randrange(1, 9))]
        shared = [node.page for node in find(pages, "", row)]
        pages.hold(shared)
        more = pages.take(len(row) // pages.size - len(shared))
        if more is None:
            pages.release(shared)
        else:
            for part, page in zip(parts(pages, "", row), [*shared, *more], strict=True):
                assert pages.publish(*part, page).page == page
            live.append([*shared, *more])
        pages.check(live)
