"""Several questions in a conversation, one sample per question, reasoning that is cut short."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from etude.data.documents import Document
from etude.data.encode import encode_chats
from etude.data.synth import DERIVED, written
from etude.data.synth_chats import Chat, assistant, exchange, user
from etude.data.synth_document_qa import asked, document_qa, phrases
from etude.data.synth_turns import joined, reasons, split
from etude.recipe.parts import Budget, Chats, TaskMix
from etude.text import chat

TWO = Chat([user("1+1?"), assistant("2", "one more"), user("2+2?"), assistant("4", "double")])


@pytest.fixture(scope="module")
def tokenizer():
    return chat.new_tokenizer(["1+1=2 one more double\n"] * 50, 320, format="nemotron3")


def learnt(tokenizer, one, **how):
    ((ids, mask),) = encode_chats(tokenizer, [one], format="nemotron3", **how)
    return tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on])


def test_a_conversation_with_earlier_reasoning_becomes_one_sample_per_question():
    first, second = split(TWO)
    assert first.messages == TWO.messages[:2]
    assert second.messages == [
        user("1+1?"),
        {"role": "assistant", "content": "2"},
        *TWO.messages[2:],
    ]
    assert first.train == second.train == "reply"


def test_reasoning_that_no_question_follows_splits_nothing():
    one = Chat([user("a"), assistant("b"), user("c"), assistant("d", "why")])
    assert split(one) == [one]


def test_a_reply_with_tools_stays_whole_and_is_learnt_as_a_whole(tokenizer):
    call = exchange("calculator", {"expression": "2+2"}, "4")
    one = replace(TWO, messages=[*TWO.messages[:3], *call, TWO.messages[3]], thinking=True)
    second = split(one)[1]
    assert second.messages[2:] == one.messages[2:]
    told = learnt(tokenizer, second)
    assert told.count("<function=calculator>") == 1 and "double\n</think>\n4" in told
    assert "2<|im_end|>" not in told.replace("2+2", "")  # the first answer has its own sample


def test_every_turn_is_learnt_once_over_the_samples_of_a_conversation(tokenizer):
    told = [learnt(tokenizer, replace(one, thinking=True)) for one in split(TWO)]
    assert told == ["one more\n</think>\n2<|im_end|>", "double\n</think>\n4<|im_end|>"]


def test_joined_conversations_hold_all_questions_in_order_and_agree_on_thinking():
    chats = [Chat([user(str(i)), assistant("-")], thinking=i % 7 < 4) for i in range(200)]
    chats[50] = replace(chats[50], tools=[{"name": "t"}])
    made = list(joined(chats, 3, random.Random(0)))
    asked = [m["content"] for one in made for m in one.messages if m["role"] == "user"]
    assert asked == [str(i) for i in range(200)]
    assert set(Counter(len(one.messages) // 2 for one in made)) == {1, 2, 3}
    for one in made:
        numbers = [int(m["content"]) for m in one.messages if m["role"] == "user"]
        assert {n % 7 < 4 for n in numbers} == {one.thinking}
        assert 50 not in numbers or numbers == [50]


def test_a_share_of_the_reasoning_is_cut_at_random_and_the_rest_stays_as_it_was():
    how = Chats(tasks={"sum": TaskMix(thinking=1.0)}, items=1000)
    whole = list(written(how, 0))
    made = list(written(replace(how, budget=Budget(share=0.3)), 0))
    kept = [one.kept for one in made if one.kept is not None]
    assert len(kept) == pytest.approx(300, abs=45)
    assert min(kept) < 0.1 and max(kept) > 0.9
    assert [replace(one, kept=None) for one in made] == whole


def test_without_reasoning_nothing_is_cut():
    how = Chats(tasks={"sum": TaskMix(thinking=0.0)}, items=50, budget=Budget(share=1.0))
    assert all(one.kept is None for one in written(how, 0))


def test_a_cut_reasoning_keeps_its_answer_and_what_closes_it_is_masked(tokenizer):
    """Who keeps the budget writes the closing tag: Nemotron 3 Ultra does not train on it."""
    one = Chat([user("1+1?"), assistant("2", "one more " * 20)], thinking=True, kept=0.5)
    told = learnt(tokenizer, one)
    assert told.endswith("\n2<|im_end|>") and "</think>" not in told
    assert 0 < told.count("one more") < 20
    assert learnt(tokenizer, one, learn_end=True).endswith("\n</think>\n2<|im_end|>")
    whole = replace(one, kept=None)
    assert learnt(tokenizer, whole).endswith("\n</think>\n2<|im_end|>")


def test_at_least_one_token_of_a_cut_reasoning_stays(tokenizer):
    one = Chat([user("1+1?"), assistant("2", "one more")], thinking=True, kept=0.0)
    ((ids, _),) = encode_chats(tokenizer, [one], format="nemotron3")
    inside = tokenizer.decode(ids).split("<think>\n")[1].split("\n</think>")[0]
    assert inside and "one more".startswith(inside) and inside != "one more"


def test_reasons_are_found():
    assert reasons(assistant("a", "b")) and not reasons(assistant("a")) and not reasons(user("a"))


TEXT = "def area(width, height):\n    return width * height\n" + "a line of words " * 80


def test_what_a_document_is_asked_stands_in_it_once():
    found = phrases("one two three four five six one two nine ten", random.Random(0))
    for phrase, answer in found.items():
        assert f"{phrase} {answer}" in "one two three four five six one two nine ten"
    assert len(found) == 4
    lines = asked(TEXT, random.Random(0))
    assert "Q: What does area take? A: width, height" in lines
    follows = [line for line in lines if "follows" in line]
    for line in follows:
        phrase, answer = line.removeprefix('Q: What follows "').split('"? A: ')
        assert f"{phrase} {answer}" in " ".join(TEXT.split())
        assert " ".join(TEXT.split()).count(phrase) == 1


def test_documents_are_asked_about_their_own_stretches():
    documents = [Document(TEXT * 4, "code", "s", str(n), "MIT") for n in range(9)]
    made = list(document_qa(documents, 5, 0))
    assert len(made) == 5 and all("Q: " in one.text for one in made)
    assert made == list(document_qa(documents, 5, 0))
    assert "document_qa" in DERIVED
