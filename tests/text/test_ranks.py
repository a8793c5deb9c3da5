"""Kimi's vocabulary files: ranks in base 64, a splitting rule that knows Han, names by id."""

import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.errors import EtudeError
from etude.text import ranks
from etude.text.tokenizer import Tokenizer

WORDS = [
    "th",
    "he",
    "the",
    " the",
    "in",
    "ing",
    "中",
    "中文",
    "aaa",
    " a",
    "12",
    "123",
    "\r\n",
    "'s",
]
ORPHAN = "xyz"  # no two tokens of lower rank make it
NAMES = {"0": "[BOS]", "1": "[EOS]", "2": "<|im_end|>", "3": "<think>"}


def learned() -> dict[bytes, int]:
    """All bytes in mixed order, then what lower ranks merge to, and one token that they do not."""
    tokens = [bytes([byte]) for byte in (*range(128, 256), *range(128))]
    for word in [*WORDS, ORPHAN]:
        data = word.encode()
        starts = [data[:n] for n in range(2, len(data))] if word != ORPHAN else []
        tokens += [token for token in (*starts, data) if token not in tokens]
    return {token: rank for rank, token in enumerate(tokens)}


def write(folder, found: dict[bytes, int], names: dict[str, dict] | None = None) -> None:
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in found.items()]
    (folder / ranks.FILE).write_bytes(b"".join(lines))
    base = len(found)
    told = {
        str(base + int(n)): {"content": name, "special": name[0] != "<" or "|" in name}
        for n, name in NAMES.items()
    }
    config = {
        "added_tokens_decoder": told if names is None else names,
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "tokenizer_class": "TikTokenTokenizer",
        "eos_token": "[EOS]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kimi")
    write(path, learned())
    return path


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.load(folder)


def merged(piece: bytes, found: dict[bytes, int]) -> list[int]:
    """The slow twin: the pair of lowest rank merges first, the first of equals."""
    if piece in found:
        return [found[piece]]
    parts = [bytes([byte]) for byte in piece]
    while True:
        pairs = [(found.get(a + b), at) for at, (a, b) in enumerate(itertools.pairwise(parts))]
        known = [pair for pair in pairs if pair[0] is not None]
        if not known:
            return [found[part] for part in parts]
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


some_text = st.lists(st.sampled_from([*WORDS, ORPHAN, "x", " ", "A", "é"]) | st.text(max_size=3))


@given(parts=some_text)
def test_ids_are_those_that_the_ranks_give(tokenizer, parts):
    """Piece by piece, as the library's own splitter cuts the text."""
    text = "".join(parts)
    pieces = [piece for piece, _ in tokenizer._core.pre_tokenizer.pre_tokenize_str(text)]
    table = ranks.letters()
    data = [bytes(table[letter] for letter in piece) for piece in pieces]
    assert tokenizer.encode(text) == [id for piece in data for id in merged(piece, learned())]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(parts=some_text)
def test_ids_are_those_of_tiktoken(tokenizer, parts):
    tiktoken = pytest.importorskip("tiktoken", reason="the library of the release is not installed")
    twin = tiktoken.Encoding(
        "x", pat_str=ranks.PIECES, mergeable_ranks=learned(), special_tokens={}
    )
    text = "".join(parts)
    assert tokenizer.encode(text) == twin.encode_ordinary(text)


CUTS = {
    "中文English混合": ["中文", "English", "混合"],
    "北京市 Pascal": ["北京市", " Pascal"],
    "HTTPServer don't": ["HTTPServer", " don't"],
    "camelCase": ["camel", "Case"],
    "12345": ["123", "45"],
    "a  b\n\n c": ["a", " ", " b", "\n\n", " c"],
    "x != y;\r\n": ["x", " !=", " y", ";\r\n"],
}


@pytest.mark.parametrize("text", CUTS)
def test_text_is_cut_before_it_merges(text, tokenizer):
    cut = [text[a:b] for _, (a, b) in tokenizer._core.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == CUTS[text]


def test_a_piece_that_is_a_token_is_that_token_even_where_no_merges_lead_to_it(tokenizer):
    assert tokenizer.encode(ORPHAN) == [learned()[ORPHAN.encode()]]


def test_special_tokens_stand_behind_the_ranks_named_or_reserved(tokenizer):
    base = len(learned())
    assert tokenizer.id("[BOS]") == base
    assert tokenizer.id(f"<|reserved_token_{base + 255}|>") == base + 255
    assert tokenizer.vocab_size == base + 256
    assert tokenizer.end == "[EOS]"
    assert tokenizer.stop_ids == [base + 1]
    ids = tokenizer.encode("a<think><|im_end|>", special=True)
    assert ids == [learned()[b"a"], base + 3, base + 2]
    assert tokenizer.decode(ids, special=False) == "a<think>"
    assert base + 2 not in tokenizer.encode("<|im_end|>")


def test_it_is_written_back_as_one_file_that_needs_no_code_of_the_release(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    text = " the 中文 aaaa" + ORPHAN
    assert again.encode(text) == tokenizer.encode(text)
    assert again.special == tokenizer.special
    assert "auto_map" not in again.config


@pytest.mark.parity
def test_transformers_opens_what_is_written_back(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (" the thing's 中文Eng 123<|im_end|>", ORPHAN):
        assert theirs(text)["input_ids"] == tokenizer.encode(text, special=True)


def broken(line: bytes):
    return lambda data: data + line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (broken(b"!!! 400\n"), "line 2"),
        (broken(b"YWI=\n"), "line 2"),
        (broken(b"YWI= x\n"), "line 2"),
        (broken(b"YWI= 9999\n"), "ranks with gaps or repeats"),
        (broken(b"YWI= 3\n"), "ranks with gaps or repeats"),
        (lambda data: b"", "ranks with gaps or repeats"),
        (lambda data: b"YWI= 0\n", "no token for byte 0"),
    ],
)
def test_a_broken_file_is_one_line(change, words, tmp_path):
    write(tmp_path, learned())
    path = tmp_path / ranks.FILE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(EtudeError, match=words) as error:
        Tokenizer.load(tmp_path)
    assert ranks.FILE in str(error.value)


def test_a_name_at_the_place_of_a_learned_token_is_refused(tmp_path):
    write(tmp_path, learned(), {"5": {"content": "[BOS]"}})
    with pytest.raises(EtudeError, match="added_tokens_decoder: id 5"):
        Tokenizer.load(tmp_path)
