"""Experts teach only what passes the filters, in both modes, and hard problems more than once."""

import random
import re
from collections import Counter

import pytest

from etude.errors import EtudeError
from etude.recipe.parts import Chats, TaskMix, Teacher
from etude.recipe.stages import Unify
from etude.rl import unify
from etude.rl.filters import loops, reject
from etude.rl.rollout import Sample
from etude.rl.unify import collect
from etude.text.chat import encode
from etude.text.turns import Message
from tests.rl.fakes import Scripted, model, tokenizer
from tests.rl.test_rollout import item, play, solver


def solve(text, seed):
    """Answers `sum` questions, long reasoning for long questions, wrong in three tries of four."""
    question = re.findall(r"([\d+-]+)\?", text)[-1]
    answer = eval(question) if seed % 4 == 0 else "?"
    thought = "" if text.endswith("</think>") else f"<think>{question}={eval(question)}</think>"
    return f"\n{thought}\n{answer}<|user|>"


def run(monkeypatch, rule, *teachers, loaded=None, **changes):
    monkeypatch.setattr(unify, "LocalSampler", lambda model: Scripted(rule))
    spec = Unify(
        samples_of=teachers,
        data=Chats(tasks={}),
        tokens=1,
        **{"prompts": 60, "drop_short": 0.5} | changes,
    )
    made = model()

    def load(stage):
        (loaded if loaded is not None else []).append(stage)
        return made

    return collect(spec, tokenizer(), load, 1)


def replies(found):
    return [chat.messages[1] for chat in found.chats]


SUM = Teacher(stage="thinker", tasks={"sum": TaskMix(levels={0: 1.0, 1: 1.0})}, thinking=0.5)
REV = Teacher(stage="writer", tasks={"rev": TaskMix()})


def test_teachers_are_loaded_one_after_another_and_their_counts_add_up(monkeypatch):
    loaded = []
    found = run(monkeypatch, solve, SUM, Teacher(stage="b", tasks=SUM.tasks), loaded=loaded)
    assert loaded == ["thinker", "b"]
    counts = found.counts["thinker"]
    assert counts["problems"] == 30
    assert counts["answers"] > counts["wrong"] > 0
    assert sum(c["kept"] for c in found.counts.values()) == len(found.chats)


def test_both_modes_are_balanced_and_every_kept_answer_is_right(monkeypatch):
    chats = run(monkeypatch, solve, SUM, prompts=120).chats
    modes = Counter(chat.thinking for chat in chats)
    assert abs(modes[True] - modes[False]) <= 1 and modes[True] > 10
    for chat in chats:
        asked, said = (turn["content"] for turn in chat.messages)
        assert said == str(eval(asked.rstrip("?")))
        assert bool(chat.messages[1].get("reasoning_content")) == chat.thinking


def test_the_half_with_the_shortest_reasoning_is_left_out(monkeypatch):
    def right(text, seed):
        return solve(text, 0)

    teacher = Teacher(stage="t", tasks={"sum": TaskMix(levels={0: 1.0, 1: 1.0}, thinking=1.0)})
    whole = run(monkeypatch, right, teacher, drop_short=0.0)
    half = run(monkeypatch, right, teacher)
    lengths = [
        sorted(len(turn["reasoning_content"] + turn["content"]) for turn in replies(found))
        for found in (whole, half)
    ]
    assert half.counts["t"]["short_problems"] == 30
    assert lengths[1] == lengths[0][30:]


def test_a_hard_problem_gives_up_to_four_answers_and_an_easy_one_a_single_one(monkeypatch):
    for rule, most in ((solve, 4), (lambda text, seed: solve(text, 0), 1)):
        teacher = Teacher(stage="t", tasks={"sum": TaskMix(thinking=0.0)})
        found = run(monkeypatch, rule, teacher, prompts=12, drop_short=0.0)
        times = Counter(chat.messages[0]["content"] for chat in found.chats)
        assert max(times.values()) == most


def test_equal_seeds_collect_equal_conversations(monkeypatch):
    assert run(monkeypatch, solve, SUM) == run(monkeypatch, solve, SUM)


def test_a_kept_tool_conversation_encodes_to_the_very_ids_that_were_sampled():
    one = item("lookup", 1)
    [sample] = play(solver(one), one)
    tools = [tool.schema() for tool in one.toolset()]
    coded = encode(tokenizer(), sample.messages, tools=tools, thinking=False)
    assert coded.ids == sample.ids and coded.mask == sample.mask


CUT, MALFORMED = Message(content="5"), Message(content="5", problems=["stray </think>"])
THOUGHT = Message(reasoning="2+3=5", content="5")
LOOPED = Message(reasoning="so it is " * 4, content="5")
ASKED = {"role": "tool", "content": "5"}


@pytest.mark.parametrize(
    ("family", "reply", "facts", "thinking", "word"),
    [
        ("sum", THOUGHT, {"reward": 1.0}, True, ""),
        ("sum", THOUGHT, {"reward": 1.0, "status": "truncated"}, True, "truncated"),
        ("sum", MALFORMED, {"reward": 1.0}, False, "malformed"),
        ("sum", LOOPED, {"reward": 1.0}, True, "repetitive"),
        ("sum", CUT, {"reward": 1.0}, True, "short"),
        ("sum", CUT, {"reward": 1.0}, False, ""),
        ("sum", Message(), {"reward": 1.0}, False, "short"),
        ("sum", LOOPED, {"reward": 0.0}, True, "repetitive"),  # the first filter names the cause
        ("sum", THOUGHT, {"reward": 0.0}, True, "wrong"),
        ("instruct", CUT, {"reward": 0.0}, False, "judged"),
        ("calc", CUT, {"reward": 1.0}, False, "protocol"),  # right, but no tool was called
        ("calc", CUT, {"reward": 1.0, "messages": [ASKED]}, False, ""),
        (
            "calc",
            CUT,
            {"reward": 1.0, "messages": [ASKED | {"content": "error: x"}]},
            False,
            "protocol",
        ),
    ],
)
def test_each_filter_drops_what_it_should(family, reply, facts, thinking, word):
    sample = Sample([], [], [], 0, replies=[reply], **facts)
    assert reject(item(family), sample, thinking=thinking) == word


LOOP = re.compile(r"(.{4,}?)\1{3,}", re.DOTALL)


def test_a_loop_is_found_wherever_the_regular_expression_finds_one():
    """Parts of one to forty letters, three times to nine, between others."""
    rng, found = random.Random(0), 0
    for _ in range(4000):
        letters = rng.choice(["a", "ab", "ab\n", "abcdefgh"])
        part, before, after = (
            "".join(rng.choices(letters, k=rng.randrange(1, most))) for most in (40, 30, 30)
        )
        text = before + (part * 9)[: rng.randrange(3, 5 * len(part) + 4)] + after
        found += loops(text)
        assert loops(text) == bool(LOOP.search(text)), text
    assert 1000 < found < 3000


class Counted(str):
    """Counts how much of it is searched."""

    looked = 0

    def find(self, part, begin, end):
        Counted.looked += end - begin
        return super().find(part, begin, end)


def test_the_search_for_loops_grows_with_the_text_and_not_with_its_square(monkeypatch):
    """Four letters looked at per letter and level; there are as many levels as doublings."""
    for length in (1 << 12, 1 << 15):
        text = Counted("".join(random.Random(0).choices("ab c", k=length)))
        monkeypatch.setattr(Counted, "looked", 0)
        assert not loops(text)
        assert Counted.looked < 4 * length * length.bit_length()
    assert loops(Counted(text + 4 * text[:999]))


def test_an_unknown_family_is_named():
    with pytest.raises(EtudeError, match="did you mean rev"):
        teacher = Teacher(stage="t", tasks={"revv": TaskMix()})
        spec = Unify(samples_of=(teacher,), data=Chats(tasks={}), tokens=1)
        collect(spec, tokenizer(), lambda stage: model(), 0)
