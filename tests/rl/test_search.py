"""Search questions: how far a policy comes depends on how many turns it has."""

import asyncio

import pytest

from etude.data import tasks
from etude.recipe.parts import Environment
from etude.rl.problems import Problem, check
from etude.rl.tasks import group
from etude.text.format import Call
from etude.text.turns import Message


async def play(environment, item):
    await environment.start()
    for call in item.calls:
        turn = Message(tool_calls=[Call(call.name, call.arguments)])
        outcome = await environment.step(turn)
        if outcome.done:
            return outcome
        assert outcome.messages[0]["content"] == call.result
    return await environment.step(Message(content=item.answer))


@pytest.mark.parametrize(("turns", "solved"), [(1, 0), (2, 0), (4, 2), (8, 4)])
def test_a_policy_cut_off_early_answers_only_what_is_near(box, turns, solved):
    rewards = []
    for level in range(4):
        ask = Environment(name="search", levels={level: 1.0}, turns=turns)
        check([ask])
        [item] = tasks.items("search", level, 1, 0, held=True)
        [environment] = group(Problem(ask, item), 1, box)
        rewards.append(asyncio.run(play(environment, item)).reward)
    assert rewards == [1.0] * solved + [0.0] * (4 - solved)
