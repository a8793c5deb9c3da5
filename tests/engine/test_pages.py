"""Pages and slots: who holds what, what is found again, and what makes room."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.engine.pages import Pages, Slots, Snapshots, root
from etude.errors import EtudeError


def known(pages, owner, tokens, held):
    """Make the content of held pages known."""
    key, size = root(owner), pages.size
    for n, page in enumerate(held):
        key = pages.publish(key, tuple(tokens[n * size : (n + 1) * size]), page).key


def test_a_prefix_is_found_by_its_owner_up_to_the_first_other_id():
    pages = Pages(8, 2)
    held = pages.take(3)
    known(pages, "one", [1, 2, 3, 4, 5, 6], held)
    found = pages.find("one", [1, 2, 3, 4, 5, 7], 6)
    assert [node.page for node in found] == held[:2]
    assert len(pages.find("one", [1, 2, 3, 4, 5, 6], 6)) == 3
    assert len(pages.find("one", [1, 2, 3, 4, 5, 6], 5)) == 2  # only whole pages
    assert pages.find("two", [1, 2, 3, 4, 5, 6], 6) == pages.find("one", [3, 4], 2) == []


def test_equal_content_has_one_page():
    pages = Pages(4, 1)
    first, second = pages.take(1), pages.take(1)
    assert pages.publish(root(""), (7,), first[0]) is pages.publish(root(""), (7,), second[0])


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
    assert len(pages.find("", [1, 2], 2)) == 1 and len(pages.find("", [9], 1)) == 1
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
    slots = Slots(2)
    slot = slots.take()
    slots.release(slot)
    with pytest.raises(EtudeError, match="let go twice"):
        slots.release(slot)


def test_snapshots_leave_with_their_page_or_when_longest_unused():
    slots = Slots(2, first=5)
    snapshots = Snapshots(slots)
    pages = Pages(3, 1, snapshots.forget)
    held = pages.take(3)
    known(pages, "", [1, 2, 3], held)
    nodes = pages.find("", [1, 2, 3], 3)
    assert [snapshots.take(node) for node in nodes[:2]] == [5, 6]
    snapshots.used(nodes[0])
    assert snapshots.take(nodes[2]) == 6 and nodes[1].snapshot == -1
    pages.release(held)
    pages.take(1)  # the page of the last id
    assert len(snapshots) == 1 and slots.free == 1
    assert Snapshots(Slots(0)).take(nodes[0]) == -1


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
        shared = [node.page for node in pages.find("", row, len(row))]
        pages.hold(shared)
        more = pages.take(len(row) // pages.size - len(shared))
        if more is None:
            pages.release(shared)
        else:
            key = root("")
            for n, page in enumerate([*shared, *more]):
                tokens = tuple(row[n * pages.size : (n + 1) * pages.size])
                node = pages.publish(key, tokens, page)
                assert node.page == page
                key = node.key
            live.append([*shared, *more])
        pages.check(live)
