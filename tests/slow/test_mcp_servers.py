"""The public servers for time and git, and many rollouts over one server."""

import asyncio
import time

import pytest

from etude.data import tasks
from etude.data.tools_served import SERVED
from etude.recipe.parts import Environment
from etude.rl.env_mcp import world
from etude.rl.problems import Problem, check
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.format import Call
from etude.text.turns import Message

pytestmark = pytest.mark.slow
for needed in ("mcp", "mcp_server_time", "mcp_server_git"):
    pytest.importorskip(needed)


@pytest.fixture(scope="module")
def box():
    with Toolbox() as made:
        yield made


def made(item, box, count=1):
    return group(Problem(Environment(name=item.family, turns=8), item), count, box)


async def play(environment, calls, answer):
    await environment.start()
    read = []
    for call in calls:
        outcome = await environment.step(Message(tool_calls=[Call(call.name, call.arguments)]))
        assert not outcome.done, outcome
        read.append(outcome.messages[0]["content"])
    return read, await environment.step(Message(content=answer))


@pytest.mark.parametrize("kind", ["time", "git"])
def test_what_is_written_down_is_what_the_server_lists(box, kind):
    listed = {tool["function"]["name"]: tool for tool in world(kind, box).server.listed()}
    assert [listed[tool["function"]["name"]] for tool in SERVED[kind]] == SERVED[kind]


@pytest.mark.parametrize(
    ("name", "level"),
    [
        (f"mcp:{kind}", level)
        for kind, levels in (("time", 2), ("git", 3))
        for level in range(levels)
    ],
)
def test_a_worked_solution_reads_as_written_and_earns_1_and_less_of_it_0(box, name, level):
    check([Environment(name=name, levels={level: 1.0})])
    for item in tasks.items(name, level, 4, 0):
        read, outcome = asyncio.run(play(*made(item, box), item.calls, item.answer))
        assert read == [call.result for call in item.calls]
        assert (outcome.reward, outcome.status) == (1, "completed")
        answer = "no" if item.data["asked"] else item.answer
        _, outcome = asyncio.run(play(*made(item, box), item.calls[:-1], answer))
        assert outcome.reward == 0


def test_a_wrong_call_is_told_and_nothing_of_this_machine_or_moment_is_in_it(box):
    item = tasks.items("mcp:git", 1, 1, 0)[0]
    calls = [Call("git_add", {"files": ["none.txt"]}), Call("git_commit", {"message": "x"})]
    (told, empty), outcome = asyncio.run(play(*made(item, box), calls, item.answer))
    assert told.startswith("error: ") and empty.startswith("error: ")
    assert "/tmp" not in told + empty and outcome.reward == 0


def test_sixteen_rollouts_at_once_do_not_wait_for_ever_and_all_earn_1(box):
    pairs = [(item, *made(item, box)) for item in tasks.items("mcp:desk", 2, 16, 0)]

    async def all_of_them():
        return await asyncio.gather(
            *(play(environment, item.calls, item.answer) for item, environment in pairs)
        )

    asyncio.run(all_of_them())  # the server starts
    pairs = [(item, *made(item, box)) for item, _ in pairs]
    began = time.monotonic()
    ended = asyncio.run(all_of_them())
    rate = sum(len(item.calls) for item, _ in pairs) / (time.monotonic() - began)
    print(f"{rate:.0f} calls/s, layout and state included")
    assert [outcome.reward for _, outcome in ended] == [1.0] * 16
    assert rate > 10  # idle: about 100
