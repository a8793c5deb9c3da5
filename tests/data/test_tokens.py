"""Token sets keep what was written, and name a damaged shard."""

import numpy as np
import pytest

from etude.data.tokens import TokenSet
from etude.errors import EtudeError

DOCS = [
    ([1, 2, 3], None),
    ([4], [False]),
    ([], None),
    ([5, 6, 7, 8, 9], [True, False, True, True, False]),
]


def _written(folder, **options):
    return TokenSet.write(folder, DOCS, 70, **options)


@pytest.mark.parametrize("shard_tokens", [1, 4, 1000])
def test_documents_and_masks_come_back_whatever_the_shard_size(tmp_path, shard_tokens):
    tokens = _written(tmp_path / "set", shard_tokens=shard_tokens)
    assert [ids.tolist() for ids, _ in tokens] == [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    masks = [[True] * len(ids) if mask is None else mask.tolist() for ids, mask in tokens]
    assert masks == [[True] * 3, [False], [True, False, True, True, False]]
    assert (len(tokens), tokens.tokens, tokens.counted) == (3, 9, 6)
    assert tokens.lengths.tolist() == [3, 1, 5]


def test_a_slice_of_a_document_carries_its_own_mask_bits(tmp_path):
    rng = np.random.default_rng(0)
    docs = [
        (rng.integers(0, 50, n).tolist(), (rng.random(n) < 0.5).tolist()) for n in (3, 17, 40, 9)
    ]
    tokens = TokenSet.write(tmp_path / "set", docs, 50)
    for number, (ids, mask) in enumerate(docs):
        for start in range(len(ids)):
            found, bits = tokens.read(number, start, start + 7)
            assert found.tolist() == ids[start : start + 7]
            assert bits.tolist() == mask[start : start + 7]


@pytest.mark.parametrize(("vocab", "width"), [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_until_the_vocabulary_needs_four(tmp_path, vocab, width):
    tokens = TokenSet.write(tmp_path / "set", [([0, vocab - 1], None)], vocab)
    assert (tmp_path / "set" / "00000.ids").stat().st_size == 2 * width
    assert tokens[0][0].tolist() == [0, vocab - 1]


@pytest.mark.parametrize("kind", ["ids", "ends", "mask"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named(tmp_path, kind, damage):
    _written(tmp_path / "set")
    path = tmp_path / "set" / f"00000.{kind}"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[0] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    with pytest.raises(EtudeError, match=f"00000.{kind}"):
        TokenSet.open(tmp_path / "set")


def test_an_id_outside_the_vocabulary_is_refused_and_the_old_set_stays(tmp_path):
    _written(tmp_path / "set")
    with pytest.raises(EtudeError, match="document 1: ids from 3 to 70"):
        TokenSet.write(tmp_path / "set", [([1], None), ([3, 70], None)], 70)
    assert TokenSet.open(tmp_path / "set").tokens == 9
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_mask_of_another_length_is_refused(tmp_path):
    with pytest.raises(EtudeError, match="a mask of 1"):
        TokenSet.write(tmp_path / "set", [([1, 2], [True])], 70)


def test_equal_content_has_equal_keys_and_other_content_another(tmp_path):
    first, second = _written(tmp_path / "a"), _written(tmp_path / "b")
    other = TokenSet.write(tmp_path / "c", [*DOCS, ([1], None)], 70)
    assert first.key == second.key != other.key


def test_an_empty_set_can_be_written_and_read(tmp_path):
    tokens = TokenSet.write(tmp_path / "set", [], 70)
    assert len(tokens) == tokens.tokens == 0
    assert list(tokens) == []
