"""Simulated users, a store with trouble, and a judge: what passes is right, what is wrong fails."""

import random

import pytest

from etude.data.sim_rubric import judge, rubric
from etude.data.sim_store import BUSY, ROOM, SHELVES, Store
from etude.data.sim_users import Scripted, Wish
from etude.data.synth import written
from etude.data.synth_episodes import HABITS, attempts, episodes, play, rejected
from etude.recipe.parts import Chats, TaskMix
from etude.text.chat import render

THINGS = {"lamp": "north", "tree": "east", "boat": "east"}
WISHES = (Wish("put", "lamp", "south"), Wish("find", "tree"))


def attempt(*, persona="clear", wishes=WISHES, trouble=0.0, habit="", seed=0):
    rng, store = random.Random(seed), Store(THINGS, seed=seed, trouble=trouble)
    messages = play(Scripted(persona, wishes, rng), store, habit=habit, rng=rng)
    wanted = rubric(wishes, THINGS, asks=persona == "terse", room=ROOM)
    return messages, store.things, judge(messages, store.things, wanted)


def said(messages, role="assistant"):
    return [m["content"] for m in messages if m["role"] == role and m["content"]]


def test_a_clear_wish_is_done_and_told():
    messages, things, faults = attempt()
    assert not faults
    assert things == THINGS | {"lamp": "south"}
    assert said(messages) == ["done, the lamp is on south", "the tree is on east"]


def test_a_terse_user_is_asked_and_answers():
    messages, _, faults = attempt(persona="terse", wishes=WISHES[:1])
    assert not faults
    assert said(messages)[0] == "which shelf?" and "south" in said(messages, "user")[1]


def test_a_busy_store_is_asked_again():
    seeds = [seed for seed in range(40) if BUSY in said(attempt(trouble=0.2, seed=seed)[0], "tool")]
    assert seeds and all(not attempt(trouble=0.2, seed=seed)[2] for seed in seeds[:5])
    assert "the world is not as it was wished" in attempt(trouble=1.0)[2]  # busy for ever


def test_what_cannot_be_done_is_a_pass_only_when_it_is_said():
    wish = (Wish("put", "lamp", "east"),)  # two things are there already
    messages, things, faults = attempt(wishes=wish)
    assert not faults and things == THINGS
    assert said(messages) == ["no: east is full"]


@pytest.mark.parametrize(
    ("habit", "persona", "fault"),
    [
        ("gives up", "clear", "the world is not as it was wished"),
        ("claims", "clear", "a call that the task needs is missing"),
        ("guesses", "terse", "did not ask for what it could not know"),
    ],
)
def test_each_bad_habit_is_caught_by_its_criterion(habit, persona, fault):
    found = [
        attempt(persona=persona, wishes=WISHES[:1], trouble=0.5, habit=habit, seed=seed)[2]
        for seed in range(20)
    ]
    assert any(fault in faults for faults in found)
    assert habit in HABITS


def test_only_passes_are_kept_and_some_are_thrown_away():
    counts = rejected(500, 0)
    assert 0.05 < 1 - counts["passed"] / 500 < 0.4
    kept = list(episodes(50, 0))
    good = [made.chat for made, _ in zip(attempts(0), range(200), strict=False) if not made.faults]
    assert kept == good[:50]
    assert kept == list(episodes(50, 0))  # the seed decides all


def test_held_out_episodes_make_calls_that_training_never_makes():
    def calls(held):
        turns = (m for chat in episodes(150, 1, held=held) for m in chat.messages)
        made = (call["function"] for turn in turns for call in turn.get("tool_calls", ()))
        return {(call["name"], *call["arguments"].values()) for call in made}

    assert not calls(False) & calls(True)


def test_the_store_refuses_what_it_does_not_know():
    store = Store(THINGS, seed=0, trouble=0.0)
    assert store.put("lamp", "attic") == "error: no shelf attic"
    assert store.find("wolf") == "error: no wolf"
    assert [store.free(shelf) for shelf in SHELVES] == [1, 2, 0, 2]


def test_a_fine_tuning_stage_mixes_them_in_by_share_and_renders_them_in_the_familys_format():
    data = Chats(tasks={"schema": TaskMix()}, items=40, simulated=0.25)
    chats = list(written(data, 0))
    simulated = [
        chat
        for chat in chats
        if len(chat.tools) == 2 and chat.tools[0]["function"]["name"] == "find"
    ]
    assert len(chats) == 40 and len(simulated) == 10
    call = next(c for c in simulated if any(m.get("tool_calls") for m in c.messages))
    text = render(call.messages, tools=call.tools, thinking=False, format="kimi_k2")
    assert "<|im_system|>tool_declare<|im_middle|>" in text
    assert "<|tool_call_begin|>functions." in text and ":0<|tool_call_argument_begin|>" in text
