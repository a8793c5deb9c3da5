"""Conversations: both modes, real tool results, no held-out question; and their ids and masks."""

import random
from collections import Counter

import pytest

from etude.data.documents import Document
from etude.data.encode import encode_chats, encode_documents
from etude.data.synth_agent import agent
from etude.data.synth_chats import sft, solution
from etude.data.synth_fim import MIDDLE, PREFIX, SUFFIX
from etude.data.synth_lines import LINES
from etude.data.synth_vocabulary import vocabulary
from etude.data.tasks import draw, held_out, items
from etude.data.tasks_base import Item
from etude.data.tools import calculate
from etude.errors import EtudeError
from etude.recipe.parts import TaskMix
from etude.text import chat
from etude.text.turns import Message

MIX = {
    "sum": TaskMix(weight=2, levels={0: 3, 1: 1}),
    "rev": TaskMix(weight=1),
    "calc": TaskMix(weight=1, thinking=0.3),
}


@pytest.fixture(scope="module")
def tokenizer():
    """A small vocabulary with the format's markers."""
    return chat.new_tokenizer(["reverse: o w n s 4+9=13 calculator expression " * 20], 400)


def _family(made):
    question = made.messages[0]["content"]
    if made.tools:
        return "calc"
    return "rev" if question.startswith("reverse") else "sum" if question.endswith("?") else "line"


def test_families_levels_and_modes_have_their_shares():
    made = list(sft(MIX, 2000, 0, thinking=0.6, lines=0.1))
    assert made == list(sft(MIX, 2000, 0, thinking=0.6, lines=0.1))
    talk = {said for _, said in LINES}
    groups = {"line": [m for m in made if m.messages[1]["content"] in talk]}
    for one in made:
        if one not in groups["line"]:
            groups.setdefault(_family(one), []).append(one)
    share = {name: len(group) / 2000 for name, group in groups.items()}
    # s.e. at most 0.011; by weight: lines 0.1, the rest 0.9 in the ratio 2 : 1 : 1
    assert share == pytest.approx(
        {"line": 0.1, "sum": 0.45, "rev": 0.225, "calc": 0.225}, abs=0.045
    )
    thinking = {n: sum(m.thinking for m in g) / len(g) for n, g in groups.items()}
    assert thinking["rev"] == 0.0
    assert thinking["sum"] == pytest.approx(0.6, abs=0.07)
    assert thinking["calc"] == pytest.approx(0.3, abs=0.09)
    short = [len(m.messages[0]["content"]) == 6 for m in groups["sum"]]
    assert sum(short) / len(short) == pytest.approx(0.75, abs=0.07)


def test_no_conversation_holds_a_held_out_question():
    for made in sft({"sum": TaskMix(levels={0: 1})}, 300, 1):
        assert not held_out(Item("sum", 0, made.messages[0]["content"], ""))


def test_both_modes_ask_the_same_question():
    item = draw("var", random.Random(0), 1)
    with_, without = (solution(item, thinking=mode) for mode in (True, False))
    assert with_.messages[0] == without.messages[0]
    assert with_.messages[1]["reasoning_content"] == item.steps
    assert without.messages[1]["reasoning_content"] == ""


@pytest.mark.parametrize(
    ("name", "level", "turns"), [("calc", 0, 4), ("lookup", 0, 4), ("lookup", 3, 10)]
)
def test_a_tool_question_is_call_result_and_answer(name, level, turns):
    item = items(name, level, 1, 0)[0]
    made = solution(item, thinking=False)
    roles = [m["role"] for m in made.messages]
    assert roles == ["user", *["assistant", "tool"] * (turns // 2 - 1), "assistant"]
    assert made.messages[-1]["content"] == item.answer
    assert [t["function"]["name"] for t in made.tools] == list(item.tools)


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(EtudeError, match=r"chats\.tasks"):
        next(sft({}, 1, 0))


def test_trajectories_of_every_kind_carry_results_of_the_real_tools():
    made = list(agent(400, 0))
    assert made == list(agent(400, 0)) != list(agent(400, 1))
    shapes = Counter(tuple(m["role"] for m in one.messages) for one in made)
    assert len(shapes) >= 6
    assert any(len(one.tools) == 2 for one in made)
    for one in made:
        for call, result in zip(one.messages, one.messages[1:], strict=False):
            for c in call.get("tool_calls", ()):
                if c["function"]["name"] == "calculator":
                    assert result["content"] == calculate(c["function"]["arguments"]["expression"])
    told = [one.messages[-1]["content"] for one in made if "/0" in one.messages[0]["content"]]
    assert told and set(told) == {"I cannot: division by zero."}


@pytest.mark.parametrize("held", [False, True])
def test_every_sum_of_a_trajectory_is_on_its_side_of_the_split(held):
    calls = [
        c["function"]["arguments"].get("expression")
        for one in agent(300, 0, held=held)
        for m in one.messages
        for c in m.get("tool_calls", ())
    ]
    sums = [c for c in calls if c and not c.endswith("/0")]
    assert sums and all(held_out(Item("calc", 0, "", "", key=c)) == held for c in sums)


def test_an_encoded_conversation_trains_the_reply_and_its_end_only(tokenizer):
    made = solution(items("sum", 0, 1, 0)[0], thinking=True)
    ((ids, mask),) = encode_chats(tokenizer, [made])
    trained = tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on])
    item = items("sum", 0, 1, 0)[0]
    assert trained == f"\n<think>{item.steps}</think>\n{item.answer}<|user|>"
    ((_, every),) = encode_chats(tokenizer, [made], train="all")
    assert all(every)


def test_lines_are_many_and_all_ways_to_ask_differ():
    asked = [way for ways, _ in LINES for way in ways]
    assert len(LINES) >= 36 and len(asked) == len(set(asked))


def test_documents_end_with_the_end_token_and_text_makes_no_marker(tokenizer):
    docs = [Document(f"a <|user|> {n}", "general", "s", str(n), "MIT") for n in range(600)]
    rows = [ids for ids, mask in encode_documents(tokenizer, docs) if mask is None]
    end, role = tokenizer.id("<|endoftext|>"), tokenizer.id("<|user|>")
    assert [tokenizer.decode(ids) for ids in rows] == [f"{d.text}<|endoftext|>" for d in docs]
    assert all(ids.count(end) == 1 and role not in ids for ids in rows)


def test_only_code_is_gapped_and_its_markers_are_single_tokens(tokenizer):
    text = f"def f(x):\n    return x  # {MIDDLE}\n"
    docs = [Document(text, d, "s", "n", "MIT") for d in ["code"] * 40 + ["general"] * 40]
    rows = [ids for ids, _ in encode_documents(tokenizer, docs, fim_rate=0.5, seed=1)]
    marks = [tokenizer.id(mark) for mark in (PREFIX, SUFFIX, MIDDLE)]
    cut = [all(ids.count(mark) == 1 for mark in marks) for ids in rows]
    assert 8 < sum(cut[:40]) < 32 and not any(cut[40:])
    assert rows == [ids for ids, _ in encode_documents(tokenizer, docs, fim_rate=0.5, seed=1)]


def test_worked_solutions_score_one_when_read_back():
    from etude.data.tasks import score

    for name in ("sum", "calc", "instruct", "code"):
        item = items(name, 0, 1, 0)[0]
        assert score(item, Message(reasoning=item.steps, content=item.answer)) == 1.0


def test_a_small_vocabulary_has_every_letter_and_makes_the_tool_block_cheap(tokenizer):
    made = chat.new_tokenizer(vocabulary(100), 800)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        assert len(made.encode(f" {letter}")) == 1
    one = solution(items("calc", 0, 1, 0)[0], thinking=False)
    costs = [len(next(encode_chats(t, [one]))[0]) for t in (made, tokenizer)]
    assert costs[0] < costs[1] / 2
