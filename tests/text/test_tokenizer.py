"""The vocabulary: lossless, deterministic, opened by transformers, deaf to typed special names."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.errors import EtudeError
from etude.text.chat import FORMATS, new_tokenizer
from etude.text.tokenizer import Tokenizer
from tests.text.conftest import LINES
from tests.text.conversations import texts

SPECIAL = FORMATS["glm45"].special


@given(text=st.text() | texts)
def test_any_text_comes_back_as_it_was_and_holds_no_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(tokenizer.encode(text, special=True)) == text


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_name_in_a_text_is_letters_unless_asked_for(tokenizer, name):
    assert tokenizer.encode(name, special=True) == [tokenizer.id(name)]
    assert len(tokenizer.encode(name)) > 1


def test_a_piece_equal_to_a_special_token_stays_letters_where_whole_pieces_skip_the_merges(
    tokenizer, tmp_path
):
    """Published files set `ignore_merges` and may list added tokens in the vocabulary too."""
    tokenizer.save(tmp_path)
    layout = json.loads((tmp_path / "tokenizer.json").read_text())
    layout["model"]["ignore_merges"] = True
    layout["model"]["vocab"]["/nothink"] = tokenizer.id("/nothink")
    layout["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"/\p{L}+|\p{N}"
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("/nothink", special=True) == [tokenizer.id("/nothink")]
    assert tokenizer.id("/nothink") not in loaded.encode("/nothink")


def test_every_digit_is_its_own_token_and_words_keep_their_space(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345 6")] == [*"12345", " ", "6"]
    many = Tokenizer.train(["the fox 123 123 123\n"] * 50, 290, ["<|endoftext|>"])
    shown = [many.decode([i]) for i in many.encode("the fox 123")]
    assert shown == ["the", " fox", " ", "1", "2", "3"]


def test_equal_texts_give_an_equal_vocabulary_in_another_process_too(tokenizer, tmp_path):
    script = (
        "import sys; from etude.text.chat import new_tokenizer;"
        "from tests.text.conftest import LINES;"
        "new_tokenizer(LINES * 5, 400).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], check=True)
    tokenizer.save(tmp_path / "here")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "other" / name).read_text() == (tmp_path / "here" / name).read_text()


def test_special_tokens_stand_behind_the_learned_ones_in_the_given_order(tokenizer):
    ids = [tokenizer.id(name) for name in SPECIAL]
    assert ids == list(range(tokenizer.vocab_size - len(SPECIAL), tokenizer.vocab_size))
    assert tokenizer.vocab_size == 400
    assert tokenizer.stop_ids == [tokenizer.id("<|endoftext|>")]


def test_a_saved_vocabulary_comes_back_whole(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = "the fox <think> 12 /nothink"
    assert loaded.encode(text, special=True) == tokenizer.encode(text, special=True)
    assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.template, loaded.special) == (tokenizer.template, tokenizer.special)
    assert (loaded.config, loaded.stop_ids) == (tokenizer.config, tokenizer.stop_ids)


def test_a_template_inside_the_configuration_stays_there(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"chat_template": "old"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    assert (
        json.loads((tmp_path / "again/tokenizer_config.json").read_text())["chat_template"] == "old"
    )
    assert not (tmp_path / "again/chat_template.jinja").exists()


@given(text=st.text(min_size=1))
def test_a_stream_of_ids_shows_the_same_text_and_no_half_characters(tokenizer, text):
    stream = tokenizer.stream()
    parts = [stream.feed(i) for i in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


def test_decoding_skips_unused_rows_and_hides_control_tokens_when_asked(tokenizer):
    ids = tokenizer.encode("<|user|>a<think>b", special=True)
    assert tokenizer.decode([*ids, 100_000]) == "<|user|>a<think>b"
    assert tokenizer.decode(ids, special=False) == "a<think>b"


def test_half_of_a_surrogate_pair_becomes_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude42")) == "🙂"


def test_an_unknown_special_name_is_answered_with_the_nearest(tokenizer):
    with pytest.raises(EtudeError, match=r"did you mean <\|user\|>\?"):
        tokenizer.id("<|users|>")


@pytest.mark.parametrize(
    ("vocab", "special", "kept"),
    [(256, ["<|a|>"], []), (300, ["<|a|>", "<|a|>"], []), (300, ["<|a|>"], ["<b>"])],
)
def test_a_vocabulary_that_cannot_be_is_refused(vocab, special, kept):
    with pytest.raises(EtudeError):
        Tokenizer.train(LINES, vocab, special, kept=kept)


@pytest.mark.parametrize(
    "content",
    [None, "{", '{"model": 3}', '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}'],
)
def test_a_missing_broken_or_foreign_file_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(EtudeError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parity
def test_transformers_opens_the_saved_folder_and_gives_the_same_ids_and_conversation(
    tokenizer, tmp_path
):
    from transformers import AutoTokenizer

    from etude.text.chat import prompt

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [
        *LINES,
        "<|user|>\nhi 12<think>é中🙂</think>\n\n  x\t /nothink",
        "  leading, trailing  \n",
    ]:
        assert theirs(text)["input_ids"] == tokenizer.encode(text, special=True)
        assert theirs.decode(tokenizer.encode(text)) == text
    chat = [
        {"role": "user", "content": "2+3?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}],
        },
        {"role": "tool", "content": "5"},
    ]
    tools = [
        {
            "type": "function",
            "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
        }
    ]
    for thinking in (True, False):
        asked = theirs.apply_chat_template(
            chat,
            tools=tools,
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=False,
        )
        assert asked == prompt(tokenizer, chat, tools=tools, thinking=thinking)
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.id("<|endoftext|>")


def test_a_new_vocabulary_carries_its_format(tokenizer):
    assert new_tokenizer(LINES, 300).template == FORMATS["glm45"].template() == tokenizer.template
