"""Agentic data: tools, tasks, trajectories, and judges that keep only what succeeded."""

import random
from collections import Counter
from itertools import islice

import pytest

from etude.data import agentic
from etude.data.agentic import JUDGES, choose, collect, demonstrate, synthesise
from etude.data.graph import find, graph
from etude.data.synth import written
from etude.data.synth_chats import Chat, solution
from etude.data.tasks import draw, held_out, items
from etude.errors import EtudeError
from etude.recipe.parts import Chats, TaskMix
from etude.text.chat import render


@pytest.fixture(scope="module")
def some():
    return list(islice(synthesise(collect(), 5, held=False), 300))


def judged(item, habit, seed=0):
    chat = solution(item, thinking=False)
    played = demonstrate(item, chat.messages, habit, random.Random(seed))
    return [name for name, passes in JUDGES.items() if not passes(item, Chat(played, chat.tools))]


def test_tasks_of_all_sources_have_one_step_and_several_and_are_for_training(some):
    families = Counter(item.family for item in some)
    assert set(families) == {*agentic.FAMILIES, "functions"}
    assert {len(item.calls) for item in some} >= {1, 2, 3, 4}
    assert not any(held_out(item) for item in some)
    assert all(held_out(item) for item in islice(synthesise(collect(), 5, held=True), 20))


def test_worked_solutions_pass_all_judges(some):
    assert [judged(item, "") for item in some] == [[]] * len(some)


@pytest.mark.parametrize(("habit", "least"), [("repeats", 1.0), ("claims", 0.97), ("skips", 0.85)])
def test_bad_habits_are_caught(some, habit, least):
    caught = sum(bool(judged(item, habit)) for item in some) / len(some)
    assert (
        caught >= least
    )  # what is left has skipped what it did not need, or claimed what is there


def test_each_judge_sees_its_own_fault():
    item = next(i for i in items("mcp:desk", 1, 50, 0) if i.calls[0].name == "stock")
    chat = solution(item, thinking=False)

    def against(**changes):
        messages = [dict(message) for message in chat.messages]
        for at, change in changes.items():
            messages[int(at[1:])] |= change
        made = Chat(messages, chat.tools)
        return {name for name, passes in JUDGES.items() if not passes(item, made)}

    call = {"function": {"name": "order", "arguments": {"item": item.calls[1].arguments["item"]}}}
    assert against() == set()
    assert "protocol" in against(m3={"tool_calls": [call]})
    full = item.calls[1].arguments | {"count": 1}
    assert "state" in against(
        m3={"tool_calls": [{"function": {"name": "order", "arguments": full}}]}
    )
    guess = {"function": {"name": "stock", "arguments": {"item": "bread"}}}
    assert "grounded" in against(m1={"tool_calls": [guess]})
    assert "errors" in against(m2={"content": "error: no"})
    assert against(m5={"content": "order 777"}) == {"answer"}


def test_scattered_tools_are_chosen_far_apart_and_a_server_may_list_its_own():
    chosen = choose(collect()["python"], 6)
    assert len({name.split("_")[0] for name in chosen}) >= 5  # math alone has four of fifteen
    listed = collect()["desk"][:1]
    assert collect({"desk": listed})["desk"] == listed
    few = synthesise(collect({"desk": [], "git": []}), 0, held=False)
    assert "stock" not in {name for item in islice(few, 200) for name in item.tools}
    without = {"pages": collect()["pages"]}
    families = {item.family for item in islice(synthesise(without, 0, held=False), 40)}
    assert families == {"lookup", "search"}


def test_reasons_are_counted_and_a_models_attempts_are_judged_like_any():
    counts = agentic.rejected(160, 0)
    assert counts["passed"] > 90 and set(counts) - {"passed"} <= set(JUDGES)

    def own(tried):  # a model that only ever answers
        return [[[*solution(item, thinking=False).messages[:1], LAST]] for item in tried]

    LAST = {"role": "assistant", "content": "no", "reasoning_content": ""}
    both = agentic.rejected(160, 0, own)
    assert both["answer"] >= 60 and both["passed"] < counts["passed"]


def test_the_set_is_seeded_and_every_chat_can_be_written():
    made = list(agentic.agentic(30, 4))
    assert made == list(agentic.agentic(30, 4)) and made != list(agentic.agentic(30, 5))
    for chat in made:
        assert chat.tools[0]["function"]["name"] in render(chat.messages, tools=chat.tools)


def test_a_stage_takes_its_share_of_them_and_no_more_than_all():
    plain = list(written(Chats(tasks={"rev": TaskMix()}, items=20), 0))
    mixed = list(written(Chats(tasks={"rev": TaskMix()}, items=20, agentic=0.25), 0))
    assert sum(bool(chat.tools) for chat in mixed) == 5 and len(mixed) == len(plain) == 20
    with pytest.raises(EtudeError, match="together at most 1"):
        next(written(Chats(tasks={"rev": TaskMix()}, items=4, agentic=0.75, simulated=0.5), 0))


@pytest.mark.parametrize("level", range(4))
def test_a_search_question_is_answered_by_its_walk_and_not_by_its_first_pages(level):
    for item in items("search", level, 20, 0):
        assert len(item.calls) == level + 2
        tools = {tool.name: tool for tool in item.toolset()}
        assert [tools[c.name].call(**c.arguments) for c in item.calls] == [
            c.result for c in item.calls
        ]
        assert item.answer in item.calls[-1].result.replace(".", "").split()
        assert item.calls[1].arguments["page"] == item.calls[0].result.split()[0]
        # what is described is not named
        assert item.calls[1].arguments["page"] not in item.question


def test_a_search_finds_nothing_where_no_word_fits():
    pages = {name: thing.page for name, thing in graph(random.Random(0)).items()}
    assert find(pages, "zebra") == "nothing found"
    item = draw("search", random.Random(0), 0)
    assert item.toolset()[1].call(page="zebra") == "error: no page zebra"
