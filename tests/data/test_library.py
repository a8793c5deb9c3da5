"""Every set a recipe can name, made once, kept by content, never with what is held out."""

import json

import pytest

from etude.data.documents import Document, read_shard
from etude.data.library import FEW, LETTER_LINES, LETTERS, Library, NoCorpus, split_off
from etude.data.synth import Chat
from etude.errors import EtudeError
from etude.text.chat import render
from tests.rl.fakes import tokenizer

ALONE = Library(NoCorpus(), count=12, seed=0)


class Shelf:
    """A corpus of one domain: document 0 is twice as good, 5 and 6 are held out."""

    domains = ("general",)

    def __init__(self, key="a"):
        rows = {"shelves": {"domain": "general"}, "kites": {"domain": "math"}}
        self.manifest = {"key": key, "sources": rows, "missing": {"kites": ["kite is not here"]}}

    def documents(self, domain, split="train", *, upsample=False):
        held = split == "held_out"
        for number in (5, 6) if held else (0, 0, 1, 2) if upsample else (0, 1, 2):
            yield Document(f"words of page {number}", domain, "made", str(number), "MIT")


def shelf(tmp_path, key="a", **more):
    return Library(Shelf(key), **({"count": 4, "seed": 0, "cache": tmp_path} | more))


def made(folder):
    return sorted(path.name for path in (folder / "tokens").iterdir())


def test_a_set_is_a_domain_of_the_corpus_or_made_or_the_users_own(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in "123")
    )
    both = shelf(tmp_path, count=2)
    assert len(list(both.documents("general"))) == 4
    assert [d.text for d in both.documents(f"folder:{tmp_path}")] == ["line 1", "line 2"]
    assert len(list(both.documents("traces"))) == 2
    assert list(both.documents(f"folder:{tmp_path}", "held_out")) == []


@pytest.mark.parametrize("name", ["traecs", "general", "folder", "hub", "file:/tmp"])
def test_a_set_that_does_not_exist_is_answered_with_those_that_do(name):
    with pytest.raises(EtudeError, match=f"set {name}: no such set, expected repository, commits"):
        list(ALONE.documents(name))


def test_conversations_come_as_the_text_that_a_model_reads():
    first = next(iter(ALONE.documents("agent")))
    assert first.text.startswith("[gMASK]<sop><|system|>") and "<|assistant|>" in first.text
    assert first.domain == "agent"


def test_a_domain_that_this_machine_has_no_source_for_is_left_out_with_a_word(tmp_path):
    said = []
    names = ["general", "math", "traces", "technical", "folder:x", "mathh"]
    here = shelf(tmp_path).present(names, where="pretrain.data.mix", say=said.append)
    assert here == ["general", "traces", "folder:x", "mathh"]  # a wrong name is refused elsewhere
    start = "pretrain.data.mix: {} is left out, its sources are not on this machine"
    assert said == [start.format("math") + " (kite is not here)", start.format("technical")]
    assert ALONE.present(["general"], where="x", say=said.append) == ["general"]
    assert len(said) == 2


def texts(count):
    return [Document(f"page {n} of a book", "general", "made", str(n), "MIT") for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, FEW - 1, FEW, 40, 2000])
def test_a_hundredth_of_the_users_own_documents_is_held_out_and_one_of_ten_at_least(count):
    held, trained = (list(split_off(iter(texts(count)), held=h)) for h in (True, False))
    assert sorted(d.name for d in held + trained) == sorted(d.name for d in texts(count))
    if count < FEW:
        assert not held
    else:
        # 2000 draws of 1 %: 20, with a deviation of 4.4
        assert 1 <= len(held) <= 2 + count / 100 + 3 * (count / 100) ** 0.5


def test_equal_texts_stay_together_and_a_set_that_grows_keeps_what_it_held_out():
    small = list(split_off(iter(texts(FEW)), held=True))
    grown = list(split_off(iter(texts(500)), held=True))
    assert small[0] in grown
    twice = list(split_off(iter(texts(500) * 2), held=True))
    assert twice == grown * 2


def test_what_a_folder_holds_out_can_be_measured_and_is_not_trained_on(tmp_path):
    lines = [json.dumps({"text": d.text}) + "\n" for d in texts(40)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text("".join(lines))
    one, name = Library(NoCorpus(), 40, 0, tmp_path), f"folder:{tmp_path / 'texts'}"
    held = {d.text for d in one.held_out(name, 9)}
    trained = {tokenizer().decode(ids.tolist()) for ids, _ in one.open(tokenizer(), name)}
    assert held and len(trained) == 40 - len(held)
    assert not any(text in row for text in held for row in trained)
    assert not held & set(one.texts(name))


def test_what_is_trained_on_repeats_good_documents_and_holds_none_that_is_held_out(tmp_path):
    both = shelf(tmp_path)
    trained = list(both.texts("general"))
    assert trained.count("words of page 0") == 2
    held = both.held_out("general", 9)
    assert {d.text for d in held} == {"words of page 5", "words of page 6"}
    assert not {d.text for d in held} & set(trained)
    assert both.held_out("general", 1) == held[:1]
    other = {d.text for d in ALONE.held_out("traces", 9)}
    assert len(other) == 9 and not other & set(ALONE.texts("traces"))


def test_a_set_without_held_out_documents_cannot_be_measured(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(EtudeError, match="has no held-out document; leave it out"):
        ALONE.held_out(f"folder:{tmp_path}", 3)


def test_tokens_are_made_once_for_equal_content(tmp_path):
    first = shelf(tmp_path).open(tokenizer(), "general")
    stamp = (first.folder / "set.json").stat().st_mtime_ns
    again = shelf(tmp_path, count=99).open(tokenizer(), "general")  # a domain is whole at any count
    assert again.folder == first.folder
    assert (first.folder / "set.json").stat().st_mtime_ns == stamp
    words = [tokenizer().decode(ids.tolist()) for ids, _ in first]
    assert words[0].startswith("words of page 0") and len(words) == 4


@pytest.mark.parametrize(
    "change", [{"key": "b"}, {"seed": 1}, {"fim": 0.5}], ids=["corpus", "seed", "fim"]
)
def test_other_content_is_another_set(tmp_path, change):
    shelf(tmp_path).open(tokenizer(), "general")
    fim = change.pop("fim", 0.0)
    shelf(tmp_path, **change).open(tokenizer(), "general", fim=fim)
    assert len(made(tmp_path)) == 2


def test_a_folder_that_changed_is_read_again(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("some words")
    one = Library(NoCorpus(), count=5, seed=0, cache=tmp_path)
    assert len(one.open(tokenizer(), f"folder:{texts}")) == 1
    (texts / "b.txt").write_text("and more of them")
    assert len(one.open(tokenizer(), f"folder:{texts}")) == 2


def test_made_sets_depend_on_how_many_were_asked_for(tmp_path):
    sizes = [
        len(Library(NoCorpus(), count, 0, tmp_path).open(tokenizer(), "traces")) for count in (3, 5)
    ]
    assert sizes == [3, 5]


def test_documents_of_no_use_are_no_set(tmp_path):
    """A single token predicts nothing: training on such rows would end without having begun."""
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 3)
    with pytest.raises(EtudeError, match="has no document; leave it out of the mixture"):
        Library(NoCorpus(), 3, 0, tmp_path).open(tokenizer(), f"folder:{tmp_path}")


def chat(answer):
    return Chat(
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], [], False
    )


def test_conversations_that_do_not_fit_are_left_out_and_counted(tmp_path):
    chats = [chat("yes"), chat("no " * 200), chat("perhaps")]
    one = Library(NoCorpus(), 3, 0, tmp_path)
    found, left_out = one.chats(tokenizer(), iter(chats), key="k", length=64)
    assert (len(found), left_out) == (2, 1)
    ids, mask = found[0]
    assert (
        tokenizer().decode(ids.tolist()).startswith(render(chats[0].messages, thinking=False)[:20])
    )
    assert 0 < mask.sum() < len(ids)
    unread = iter(())
    again, _ = one.chats(tokenizer(), unread, key="k", length=64)
    assert again.key == found.key
    with pytest.raises(EtudeError, match="chats: none fits into 4 tokens; raise data.length"):
        one.chats(tokenizer(), iter(chats), key="k", length=4)


def test_the_vocabulary_is_trained_on_every_domain_in_turn_until_the_bytes_are_reached(tmp_path):
    texts = list(shelf(tmp_path).sample(4000))
    assert texts[:LETTER_LINES] == [LETTERS] * LETTER_LINES
    rest = texts[LETTER_LINES:]
    assert rest[0] == "words of page 0" and rest[3] == "words of page 0"  # then traces, then agent
    size = sum(len(text.encode()) for text in rest)
    assert size >= 4000 > size - len(rest[-1].encode())
    assert list(shelf(tmp_path).sample(4000)) == texts


def test_a_small_shelf_is_read_to_its_end():
    texts = list(ALONE.sample(10**9))
    assert len(texts) == LETTER_LINES + 2 * ALONE.count


def test_a_shard_that_goes_while_a_run_reads_is_named(tmp_path):
    with pytest.raises(EtudeError, match=r"general\.jsonl\.gz: this shard is gone.*goes on"):
        next(read_shard(tmp_path / "general.jsonl.gz"))
