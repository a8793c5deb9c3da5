"""Rows packed as GPT-3 packs them: documents behind each other, nothing masked."""

import numpy as np
import pytest
import torch

from etude.data.loader import Loader
from etude.data.pack import IGNORED
from etude.data.tokens import TokenSet
from etude.models.checkpoint import create

END = 0


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rng = np.random.default_rng(0)
    docs = [
        ([*rng.integers(1, 50, int(rng.integers(3, 20))).tolist(), END], None) for _ in range(80)
    ]
    return TokenSet.write(tmp_path_factory.mktemp("set") / "a", docs, 50)


def batches(tokens, **more):
    options = {"length": 32, "rows": 4, "seed": 1} | more
    return Loader({"a": tokens}, {"a": 1.0}, **options)


def test_a_joined_row_predicts_its_next_token_everywhere_also_behind_an_end(tokens):
    batch = batches(tokens, joined=True).next()
    assert torch.equal(batch.labels[:, :-1], batch.ids[:, 1:])
    assert int((batch.ids == END).sum()) > 4
    assert batch.pos.tolist() == [list(range(32))] * 4
    assert bool((batch.segments == 1).all())
    assert batch.whole
    assert batch.tokens == int((batch.labels != IGNORED).sum())


def test_the_tokens_are_those_of_masked_rows_which_learn_nothing_across_a_border(tokens):
    joined, apart = batches(tokens, joined=True).next(), batches(tokens).next()
    assert torch.equal(joined.ids, apart.ids)
    assert not apart.whole
    ends = apart.ids[:, :-1] == END
    assert bool((apart.labels[:, :-1][ends] == IGNORED).all())
    assert apart.tokens < joined.tokens
    assert sum(part.tokens for part in joined.split(1)) == joined.tokens
    assert all(part.whole for part in joined.split(1))


def test_a_position_saved_with_one_mask_is_refused_by_the_other(tokens):
    from etude.errors import EtudeError

    with pytest.raises(EtudeError, match="data position"):
        batches(tokens, joined=True).restore(batches(tokens).state())


def test_a_row_with_padding_is_joined_up_to_it_and_is_not_whole(tokens):
    batch = batches(tokens, joined=True, pack="best_fit", length=25, rows=16).next()
    padded = batch.segments == 0
    assert bool(padded.any())
    assert not batch.whole
    assert bool((batch.labels[padded] == IGNORED).all())
    assert bool((batch.pos[padded] == 0).all())


def test_no_token_is_seen_twice_before_all_are_seen_once(tokens):
    """Sampling without replacement until an epoch ends (section 2.2)."""
    loader = batches(tokens, joined=True, rows=1)
    total = int(tokens.lengths.sum())
    stream = torch.cat([loader.next().ids[0] for _ in range(-(-total // 32))])[:total]
    whole = torch.cat([torch.from_numpy(tokens.read(n, 0, 10**6)[0]) for n in range(len(tokens))])
    assert torch.equal(stream.sort().values, whole.long().sort().values)


def test_a_token_behind_an_end_reads_what_stands_before_it(tokens):
    """The loss of a joined row is that of one document, whose mask would change it."""
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "d_head": 8, "n_positions": 64}
    model = create("gpt3", "tiny", vocab_size=50, initializer_range=0.3, **shape)
    batch = batches(tokens, joined=True).next()
    with torch.no_grad():
        plain = model(batch.ids, labels=batch.labels, pos=batch.pos).logp
        same = model(batch.ids, labels=batch.labels, pos=batch.pos, segments=batch.segments).logp
        apart = batches(tokens).next()
        masked = model(apart.ids, labels=batch.labels, segments=apart.segments).logp
    torch.testing.assert_close(plain, same, atol=1e-5, rtol=0)
    assert float((plain - masked).abs().max()) > 0.1
