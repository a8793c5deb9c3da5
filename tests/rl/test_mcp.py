"""Tools of real servers: warm, shared, and only the rollout that met a fault pays for it."""

import asyncio
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from etude.data import tasks
from etude.data.tasks_base import Item
from etude.data.tools_served import SERVED
from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl import mcp_client
from etude.rl.env_mcp import world
from etude.rl.mcp_client import Server
from etude.rl.problems import Problem, check, draw
from etude.rl.tasks import StepEnvironment, group
from etude.rl.toolbox import Toolbox, ToolFailure
from etude.text.format import Call
from etude.text.turns import Message

pytest.importorskip("mcp")
ODD = [sys.executable, "-S", str(Path(__file__).with_name("odd_server.py"))]


@pytest.fixture(scope="module")
def odd():
    server = Server("odd", ODD, seconds=0.5, most=50)
    yield server
    server.close()


def ask(server, tool, **arguments):
    return asyncio.run(server.call(tool, arguments))


def test_a_tool_that_goes_wrong_or_floods_is_told_to_the_model(odd):
    assert ask(odd, "good") == "fine"
    assert ask(odd, "wrong") == "error: no such thing"
    assert ask(odd, "flood") == "x" * 50 + " ... cut"


def test_a_tool_that_is_not_there_is_a_failure_and_the_server_goes_on(odd):
    before = ask(odd, "pid")
    with pytest.raises(ToolFailure, match="wings: MCPError: Unknown tool"):
        ask(odd, "wings")
    assert ask(odd, "pid") == before


@pytest.mark.parametrize(("tool", "words"), [("hang", r"no answer in 0.5 s"), ("die", "die: ")])
def test_a_tool_that_hangs_or_kills_its_server_harms_its_own_call_alone(odd, tool, words):
    async def three():
        calls = [odd.call(name, {}) for name in ("pid", tool, "pid")]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, failed, last = asyncio.run(three())
    assert isinstance(failed, ToolFailure)
    with pytest.raises(ToolFailure, match=words):
        raise failed
    assert first != last and last.isdigit()


def test_a_server_that_died_between_calls_is_replaced_unseen(odd):
    before = ask(odd, "pid")
    os.kill(int(before), signal.SIGKILL)
    time.sleep(mcp_client.IDLE + 0.1)
    assert ask(odd, "pid") != before


def test_a_list_of_tools_becomes_short_descriptions_whichever_way_it_is_spelt(odd):
    parameters = {"type": "object", "properties": {"word": {"type": "string"}}, "required": []}
    assert odd.listed()[0]["function"] == {
        "name": "good",
        "description": "Odd.",
        "parameters": parameters,
    }
    old = type("Tool", (), {"inputSchema": {"properties": {}}})()
    assert mcp_client.schema_of(old) == {"properties": {}}


def test_a_server_that_does_not_start_is_one_line():
    server = Server("none", [sys.executable, "-S", "-c", "raise SystemExit(1)"])
    with pytest.raises(EtudeError, match=r"server none: .*try `"):
        ask(server, "good")
    server.close()


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(mcp_client, "find_spec", lambda name: None)
    with pytest.raises(EtudeError, match=r"mcp:desk.*mcp is not installed.*etude\[rl\]"):
        check([Environment(name="mcp:desk")])


@pytest.mark.parametrize("name", ["mcp:dusk", "mcp:"])
def test_an_unknown_server_is_told_with_those_that_there_are(name):
    with pytest.raises(EtudeError, match="mcp:desk, mcp:time, mcp:git"):
        check([Environment(name=name)])


async def play(environment, calls, answer):
    """Make calls, one a turn, and answer; what was read, and how it ended."""
    await environment.start()
    read = []
    for call in calls:
        outcome = await environment.step(Message(tool_calls=[Call(call.name, call.arguments)]))
        if outcome.done:
            return read, outcome
        read.append(outcome.messages[0]["content"])
    return read, await environment.step(Message(content=answer))


def made(item: Item, box: Toolbox, count: int = 1, **how):
    ask = Environment(name=item.family, **{"turns": 8} | how)
    return group(Problem(ask, item), count, box)


def test_the_desk_lists_what_is_written_down(box):
    assert world("desk", box).server.listed() == SERVED["desk"]


@pytest.mark.parametrize("level", range(3))
def test_a_worked_solution_at_the_desk_reads_as_written_and_earns_1(box, level):
    async def all_of_them():
        pairs = [(item, *made(item, box)) for item in tasks.items("mcp:desk", level, 8, 0)]
        played = [play(environment, item.calls, item.answer) for item, environment in pairs]
        return zip(pairs, await asyncio.gather(*played), strict=True)

    for (item, _), (read, outcome) in asyncio.run(all_of_them()):
        assert read == [call.result for call in item.calls]
        assert (outcome.reward, outcome.status, outcome.info["state"]) == (1, "completed", True)


@pytest.mark.parametrize("level", range(3))
def test_a_solution_with_one_step_left_out_earns_nothing(box, level):
    item = next(i for i in tasks.items("mcp:desk", level, 50, 1) if not i.data["asked"])
    [environment] = made(item, box)
    _, outcome = asyncio.run(play(environment, item.calls[:-1], item.answer))
    assert (outcome.reward, outcome.info["state"]) == (0, False)


def test_where_something_is_asked_the_state_is_not_enough(box):
    item = next(i for i in tasks.items("mcp:desk", 0, 50, 1) if i.data["asked"])
    [environment] = made(item, box)
    _, outcome = asyncio.run(play(environment, item.calls, "what?"))
    assert (outcome.reward, outcome.info["state"]) == (0, True)


def test_attempts_of_a_group_do_not_see_each_others_changes_and_repeat_exactly(box):
    item = tasks.items("mcp:desk", 2, 1, 3)[0]
    first, second = made(item, box, 2)

    async def both():
        part = play(first, item.calls[:2], "enough")
        return await asyncio.gather(part, play(second, item.calls, item.answer))

    (_, half), (read, outcome) = asyncio.run(both())
    assert (half.reward, outcome.reward) == (0, 1)
    [again] = made(item, box)  # an attempt that is replayed after a stop
    assert asyncio.run(play(again, item.calls, item.answer)) == (read, outcome)


def test_a_call_of_what_was_not_offered_fails_and_hidden_arguments_cannot_be_set(box):
    item = next(i for i in tasks.items("mcp:desk", 0, 50, 1) if i.calls[0].name == "stock")
    [environment] = made(item, box)
    absent = next(name for name in ("note", "cancel") if name not in item.tools)
    call = replace(item.calls[0], name=absent, arguments={})
    _, outcome = asyncio.run(play(environment, [call], ""))
    assert (outcome.status, outcome.reward) == ("failed", 0)
    [environment] = made(item, box)
    bad = replace(item.calls[0], arguments=item.calls[0].arguments | {"session": "/etc/passwd"})
    read, outcome = asyncio.run(play(environment, [bad], item.answer))
    assert read == [item.calls[0].result] and outcome.reward == 1


def test_places_go_with_their_attempts(box):
    [environment] = made(tasks.items("mcp:desk", 0, 1, 0)[0], box)
    asyncio.run(environment.start())
    place = environment._place
    assert place.exists()
    del environment
    assert not place.exists()


def test_single_steps_are_compared_without_a_server(box):
    problems = draw([Environment(name="mcp:git", reward="step", levels={2: 1.0})], 3, 0)
    for problem in problems:
        [environment] = group(problem, 1, box)
        assert isinstance(environment, StepEnvironment)
    assert "mcp:git" not in box._kept


def test_a_malformed_turn_ends_the_attempt(box):
    item = tasks.draw("mcp:desk", random.Random(0), 0)
    [environment] = made(item, box)
    asyncio.run(environment.start())
    outcome = asyncio.run(environment.step(Message(problems=["half a call"])))
    assert (outcome.status, outcome.reward) == ("aborted", 0)
