"""Pages behind a band are let go, and nothing else changes: not ids, not what others find."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine import helpers
from tests.engine.helpers import answers, empty, engine, request
from tests.engine.test_engine import told

# the widths of the layers of attention; 0 reads all
MODELS = {
    "banded": ("glm45", (3, 5)),
    "mixed": ("glm45", (0, 4)),
    "hybrid": ("nemotron3", (4,)),
    "one": ("glm45", (1,)),
}
DUE = {}


def banded(name):
    family, widths = MODELS[name]
    return helpers.model(family, widths=widths)


def due(name, row, tokens):
    """What a prompt gives by whole passes of the model; computed once."""
    key = name, tuple(row)
    if len(DUE.get(key, ())) < tokens:
        DUE[key] = helpers.slow(banded(name), row, tokens)
    return DUE[key][:tokens]


@pytest.mark.parametrize("name", ["banded", "mixed", "hybrid"])
def test_a_long_request_holds_what_its_bands_read_and_no_more(name):
    """In pages of 2 with 4 tokens read at once, a band of w needs (w + 4) / 2 pages and one."""
    row, widths = [n % 7 for n in range(26)], MODELS[name][1]
    made = engine(banded(name), page_size=2, chunk=4, reuse=False)
    made.submit(request(row, 10))
    tokens, most = [], [0] * len(made.ledger.tables)
    while made.busy:
        tokens += [token for delta in made.step() for token in delta.token_ids]
        most = [max(pair) for pair in zip(most, held(made), strict=True)]
    assert tokens == due(name, row, 10)
    bounds = [-(-(width + 4) // 2) + 1 for width in sorted(widths, reverse=True) if width]
    if 0 in widths:
        assert most.pop(0) == 17  # of all the 34 that it had computed when last seen
    assert len(most) == len(bounds) and all(n <= m for n, m in zip(most, bounds, strict=True))
    empty(made)


def held(made):
    return [pages.held for pages in made.ledger.tables]


def test_a_prompt_longer_than_all_pages_is_read_where_every_layer_is_banded():
    row = [n % 7 for n in range(80)]
    made = engine(banded("banded"), page_size=2, chunk=4, pages=12)
    assert made.run([request(row, 8)])[0].tokens == due("banded", row, 8)
    mixed = engine(banded("mixed"), page_size=2, chunk=4, pages=12)
    assert mixed.run([request(row, 8)])[0].failure.code == "context_length_exceeded"


@pytest.mark.parametrize("name", ["mixed", "hybrid"])
def test_a_prefix_is_found_as_long_as_the_last_pages_before_it_are_there(name):
    model, stem = banded(name), [n % 5 for n in range(24)]
    made = engine(model, page_size=2, chunk=6, snapshot_every=3)
    made.run([request([*stem, 9, 9], 12)])
    [one] = made.run([request([*stem, 8], 6)])
    assert one.tokens == due(name, [*stem, 8], 6)
    assert made.stats().reused_tokens >= 18
    for pages in made.ledger.tables[1 if name == "mixed" else 0 :]:
        pages.release(pages.take(pages.available))  # others had what was kept of the band
    before = made.stats().reused_tokens
    [one] = made.run([request([*stem, 7], 6)])
    assert one.tokens == due(name, [*stem, 7], 6)
    assert made.stats().reused_tokens == before  # dense layers have their pages; that is not enough
    empty(made)


@given(data=st.data())
@settings(max_examples=3)
def test_random_mixes_with_bands(data):
    """Any company, few pages, open prompts that grow and are rewound: each gets what is due."""
    draw = data.draw
    name = draw(st.sampled_from(sorted(MODELS)))
    model = banded(name)
    how = {
        "page_size": draw(st.sampled_from([1, 2, 3])),
        "chunk": draw(st.integers(1, 9)),
        "token_budget": draw(st.integers(8, 30)),
        "max_running": draw(st.integers(1, 5)),
        "reuse": draw(st.booleans()),
        "snapshot_every": draw(st.integers(1, 4)),
        "speculate": draw(st.integers(0, 3)) if model.mtp is not None else 0,
        "deterministic": draw(st.integers(0, 3)) == 0,
    }
    how["pages"] = -(-draw(st.integers(33, 60)) // how["page_size"])
    made, rows, found = engine(model, **how), {}, {}
    for (layer, _), pool in made.store.paged.items():
        if layer < len(model.layers):
            pool.fill_(float("nan"))  # so nothing is read, masked or not, that was not written
    for n, row in enumerate(helpers.prompts(draw(st.integers(0, 1)), 3, longest=16)):
        cut = draw(st.integers(0, len(row)))
        id = made.submit(request(row[:cut], 8, open=True))
        rows[id] = row
        turn(made, found, draw(st.integers(0, 3)))
        if draw(st.booleans()):
            made.extend(id, [n, 3, 3, 1])
            turn(made, found, draw(st.integers(0, 3)))
            cut = draw(st.integers(0, cut))
            made.rewind(id, cut)
        made.extend(id, row[cut:])
        made.seal(id)
        turn(made, found, draw(st.integers(0, 3)))
    turn(made, found, 400)
    assert found == {id: due(name, row, 8) for id, row in rows.items()}
    empty(made)


def turn(made, found, steps):
    while steps and made.busy:
        for delta in made.step():
            found.setdefault(delta.id, []).extend(delta.token_ids)
        steps -= 1


def test_the_answers_of_a_band_are_found_by_what_follows():
    model = banded("mixed")
    made = engine(model, page_size=2)
    [one] = made.run([request([3, 1, 4, 1, 5], 12)])
    talk = [3, 1, 4, 1, 5, *one.tokens, 3, 3]
    id = made.submit(request(talk, 4))
    assert told(made, id).tokens == answers(model, [request(talk, 4)])[0]
    assert made.stats().reused_tokens == 16
