"""A simulated user at the desk: turns on both sides, calls between, and the end that counts."""

import asyncio
import random

import pytest

from etude.data import tasks
from etude.data.sim_clients import Ask, Client
from etude.errors import EtudeError
from etude.recipe.parts import Environment
from etude.rl.dialogue import Dialogue
from etude.rl.env_mcp import world
from etude.rl.env_user import ModelUser, ProgramUser, UserEnvironment
from etude.rl.problems import Problem, check
from etude.rl.tasks import group
from etude.text import chat
from etude.text.format import Call
from etude.text.turns import Message
from tests.rl.fakes import Scripted, player, tokenizer

pytest.importorskip("mcp")


def turns_of(item):
    """The model's turns of the worked conversation."""
    for message in item.data["messages"]:
        if message["role"] == "assistant":
            calls = [call["function"] for call in message.get("tool_calls", ())]
            made = [Call(call["name"], call["arguments"]) for call in calls]
            yield Message(content=message["content"], tool_calls=made)


async def play(environment, turns):
    start = await environment.start()
    said = list(start.messages)
    for turn in turns:
        outcome = await environment.step(turn)
        if outcome.done:
            return said, outcome
        said += [turn.chat(), *outcome.messages]
    return said, None


def made(item, box, turns=12):
    [environment] = group(Problem(Environment(name="user:desk", turns=turns), item), 1, box)
    return environment


@pytest.mark.parametrize("level", range(3))
def test_the_worked_conversation_is_the_one_that_is_played_and_earns_1(box, level):
    for item in tasks.items("user:desk", level, 6, 0):
        said, outcome = asyncio.run(play(made(item, box), turns_of(item)))
        assert (outcome.reward, outcome.status) == (1, "completed")
        told = [(m["role"], m["content"]) for m in item.data["messages"][:-1]]
        assert [(m["role"], m["content"]) for m in said] == told


@pytest.mark.parametrize("level", range(3))
def test_without_one_of_its_calls_it_earns_nothing(box, level):
    item = next(i for i in tasks.items("user:desk", level, 50, 0) if i.calls[-1].name != "stock")
    turns = list(turns_of(item))
    del turns[-2]
    _, outcome = asyncio.run(play(made(item, box), turns))
    assert (outcome.reward, outcome.info["state"]) == (0, False)


def test_an_answer_that_does_not_tell_what_was_asked_earns_nothing(box):
    item = next(i for i in tasks.items("user:desk", 0, 50, 0) if i.calls[0].name == "stock")
    call, _ = turns_of(item)
    _, outcome = asyncio.run(play(made(item, box), [call, Message(content="some")]))
    assert (outcome.reward, outcome.info["state"]) == (0, True)


def test_a_malformed_call_or_too_many_turns_end_it(box):
    item = tasks.items("user:desk", 1, 1, 0)[0]
    _, outcome = asyncio.run(play(made(item, box), [Message(problems=["half a call"])]))
    assert (outcome.status, outcome.reward) == ("aborted", 0)
    _, outcome = asyncio.run(play(made(item, box, turns=2), turns_of(item)))
    assert (outcome.status, outcome.reward) == ("truncated", 0)


def test_a_client_says_what_it_owes_when_asked_and_else_goes_on():
    asks = [Ask("order pear", "2"), Ask("how many boat?", heard="7")]
    client = Client(asks)
    assert [client.opening(), client.reply("how many?"), client.reply("order 12")] == [
        "order pear",
        "2",
        "how many boat?",
    ]
    assert (client.reply("70"), client.missed) == (None, 1)
    client = Client(asks)
    assert (client.reply("done"), client.reply("7"), client.missed) == ("how many boat?", None, 0)


def test_a_policy_talks_with_the_user_through_its_tokens(box):
    item = next(i for i in tasks.items("user:desk", 1, 50, 0) if i.calls[0].name == "cancel")
    [call] = item.calls
    number = f"<arg_key>number</arg_key>\n<arg_value>{call.arguments['number']}</arg_value>"
    written = f"\n<tool_call>cancel\n{number}\n</tool_call><|observation|>"

    def rule(text, seed):
        if "</tool_response>" in text:
            return "\nok<|user|>"
        return written if "which?" in text else "\nwhich?<|user|>"

    problem = Problem(Environment(name="user:desk", turns=6), item)
    [[sample]] = player(rule, box).play([problem], 0)
    assert (sample.reward, sample.turns, sample.status) == (1, 3, "completed")
    whole = tokenizer().decode(sample.ids)
    spoken = chat.render(sample.messages, tools=_schemas(item), thinking=False)
    assert whole.removesuffix("<|user|>") == spoken


def _schemas(item):
    return [tool.schema() for tool in item.toolset()]


@pytest.mark.parametrize("name", chat.FORMATS)
def test_what_the_user_says_next_spells_the_conversation_in_every_format(name):
    of = chat.FORMATS[name]
    mode = of.modes[-1]
    made = chat.new_tokenizer(["say the numbers"] * 3, 340, format=name)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    more = {"role": "user", "content": "2 <|user|>"}  # a marker in a user's words stays text
    options = {"thinking": mode, "format": name}
    before = chat.render(messages, **options)
    end = of.syntax.ends[0]
    before = before.removesuffix(of.after) if of.closed else before + end
    ids = made.encode(before, special=True) + chat.observation(made, [more], **options)
    whole = chat.render([*messages, more], generation_prompt=True, **options)
    assert made.decode(ids) == whole
    tail = chat.observation(made, [more], **options)
    assert tail.count(made.id(of.stops[1] if len(of.stops) > 1 else of.stops[0])) <= 1


def test_a_model_plays_the_user_behind_the_same_interface(box):
    item = next(i for i in tasks.items("user:desk", 0, 50, 0) if i.calls[0].name == "order")
    heard = []

    def rule(text, seed):
        heard.append(text)
        return "\nDone.<|user|>" if "made" in text else "\nhi<|user|>"

    user = ModelUser(Scripted(rule), Dialogue(tokenizer()), item.question)
    environment = UserEnvironment(item, user, world("desk", box), box, turns=4)
    [call, _] = turns_of(item)
    said, outcome = asyncio.run(play(environment, [call, Message(content="made")]))
    assert said[0]["content"] == "hi" and item.question in heard[0]
    assert outcome.reward == 1
    assert ProgramUser(Client([Ask("a")])).content()


def test_step_rewards_and_unknown_users_are_refused():
    with pytest.raises(EtudeError, match="reward: step"):
        check([Environment(name="user:desk", reward="step")])
    with pytest.raises(EtudeError, match="user:desk"):
        check([Environment(name="user:dusk")])
    assert tasks.draw("user:desk", random.Random(0), 0).data["asks"]
