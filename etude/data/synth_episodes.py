"""Whole conversations between a simulated user, a demonstrator and a store; only good ones stay.

The demonstrator makes mistakes on purpose: it forgets to try again, guesses instead of asking, or
says "done" unseen. The judge throws those attempts away, as it would a model's.

Source: Kimi K2, arXiv:2507.20534, section 3.1.1.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etude.data.sim_rubric import judge, rubric
from etude.data.sim_store import BUSY, ROOM, SHELVES, Store, stocked
from etude.data.sim_users import Scripted, User, Wish
from etude.data.synth_chats import Chat, assistant, exchange, user
from etude.data.tasks import held_out
from etude.data.tasks_base import Item

TROUBLE = 0.25  # chance that the store is busy
FAULTY = 0.3  # share of attempts in which the demonstrator has a bad habit
HABITS = ("gives up", "guesses", "claims")
TURNS = 6  # of the user at most
DRAWS = 20  # of wishes for one store
TRIES = 4  # of one call that is answered `busy`


@dataclass(frozen=True, slots=True)
class Attempt:
    """One conversation, judged.

    Attributes:
        chat: the conversation.
        faults: what the judge found; empty for a pass.
    """

    chat: Chat
    faults: tuple[str, ...]


def episodes(count: int, seed: int, *, held: bool = False) -> Iterator[Chat]:
    """Yield conversations that passed their rubric.

    Args:
        count: how many.
        seed: decides all of them.
        held: tasks from the held-out side instead: one wish in five, by hash.
    """
    passed = (made.chat for made in attempts(seed, held=held) if not made.faults)
    for _ in range(count):
        yield next(passed)


def attempts(seed: int, *, held: bool = False) -> Iterator[Attempt]:
    """Yield attempts without end, good and bad."""
    rng = random.Random(seed)
    while True:
        store = stocked(rng, trouble=TROUBLE)
        persona = rng.choice(("clear", "clear", "terse"))
        wishes = _wishes(rng, store, persona, held=held)
        if not wishes:
            continue
        before = dict(store.things)
        habit = rng.choice(HABITS) if rng.random() < FAULTY else ""
        messages = play(Scripted(persona, wishes, rng), store, habit=habit, rng=rng)
        asks = persona == "terse" and wishes[0].kind == "put"
        wanted = rubric(wishes, before, asks=asks, room=ROOM)
        chat = Chat(messages, [tool.schema() for tool in store.tools()])
        yield Attempt(chat, judge(messages, store.things, wanted))


def rejected(count: int, seed: int) -> Counter[str]:
    """Count why attempts are thrown away among `count` of them; `passed` counts the rest."""
    made = attempts(seed)
    return Counter(fault for _ in range(count) for fault in next(made).faults or ("passed",))


def play(side: User, store: Store, *, habit: str, rng: random.Random) -> list[dict[str, Any]]:
    """Let a user and the demonstrator talk to the end.

    Args:
        side: the user.
        store: what the tools change.
        habit: a bad one of the demonstrator; "" for none.
        rng: decides its words and guesses.
    """
    said: str | None = side.opening()
    messages: list[dict[str, Any]] = []
    open_item = ""
    for _ in range(TURNS):
        if said is None:
            break
        messages.append(user(said))
        item, shelf = _understood(said, store, open_item)
        if not shelf and not _seeks(said) and habit == "guesses":
            shelf = rng.choice(SHELVES)
        if not shelf and not _seeks(said):
            open_item = item
            messages.append(assistant("which shelf?"))
        else:
            open_item = ""
            messages += _served(item, shelf, store, habit)
        said = side.reply(messages[-1]["content"])
    return messages


def _understood(said: str, store: Store, open_item: str) -> tuple[str, str]:
    """Read the thing and the shelf out of what a user said."""
    words = said.strip("?").split()
    item = next((word for word in words if word in store.things), open_item)
    return item, next((word for word in words if word in SHELVES), "")


def _seeks(said: str) -> bool:
    return said.startswith(("where", "find", "which"))


def _served(item: str, shelf: str, store: Store, habit: str) -> list[dict[str, Any]]:
    """Call the tool for a wish, again where the store is busy, and tell what came of it."""
    if not shelf:
        found = store.find(item)
        return [*exchange("find", {"item": item}, found), assistant(f"the {item} is on {found}")]
    if habit == "claims":
        return [assistant(f"done, the {item} is on {shelf}")]
    turns: list[dict[str, Any]] = []
    result = ""
    for _ in range(1 if habit == "gives up" else TRIES):
        result = store.put(item, shelf)
        turns += exchange("put", {"item": item, "shelf": shelf}, result)
        if result != BUSY:
            break
    why = result.removeprefix("error: ")
    told = f"done, the {item} is on {shelf}" if result == "ok" else f"no: {why}"
    return [*turns, assistant(told)]


def _wishes(rng: random.Random, store: Store, persona: str, *, held: bool) -> tuple[Wish, ...]:
    """Draw one or two wishes about different things, all from one side; none where it has none."""
    for _ in range(DRAWS):
        items = rng.sample(list(store.things), 1 if persona == "terse" else rng.choice((1, 2)))
        wishes = tuple(_wish(rng, store, item) for item in items)
        if all(_held(wish) == held for wish in wishes):
            return wishes
    return ()


def _held(wish: Wish) -> bool:
    key = f"{wish.kind} {wish.item} {wish.shelf}"
    return held_out(Item("episode", 0, "", "", key=key))


def _wish(rng: random.Random, store: Store, item: str) -> Wish:
    if rng.random() < 0.3:
        return Wish("find", item)
    return Wish("put", item, rng.choice([s for s in SHELVES if s != store.things[item]]))
