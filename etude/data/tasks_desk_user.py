"""The order desk with a client at it: wishes that come in turns, some without all that is needed.

The end counts (GLM-4.5, arXiv:2508.06471, section 3.4, end-to-end multi-turn function calling): all
calls well-formed and the desk as the client wished it; `etude.rl.env_user` plays it.
"""

import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from etude.data.messages import assistant, exchange, user
from etude.data.sim_clients import Ask, Client
from etude.data.tasks_base import Exact, Item
from etude.data.tasks_desk import NAMES, Desktop

Wished = tuple[Ask, str, str]  # what is asked, what the model asks back, what it says at the end


class Counter(Exact):
    """Level 0: one wish, all told. Level 1: it must be asked back. Level 2: two wishes, any.

    The item's question is all that the client says, in order; it is told turn by turn.
    """

    name = "user:desk"
    levels = 3

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return wishes with a conversation in which they are granted."""
        top, asks, messages = Desktop(rng), [], []
        for terse in [level == 1] if level < 2 else [rng.random() < 0.5 for _ in range(2)]:
            before = len(top.calls)
            ask, back, said = rng.choice(WISHES[:2] if terse else WISHES)(rng, top, terse)
            asks.append(ask)
            messages.append(user(ask.said))
            if terse:
                messages += [assistant(back), user(ask.owed)]
            for call in top.calls[before:]:
                messages += exchange(call.name, call.arguments, call.result)
            messages.append(assistant(said))
        used = dict.fromkeys(call.name for call in top.calls)
        other = rng.choice([name for name in NAMES if name not in used])
        tools = tuple(rng.sample([*used, other], len(used) + 1))
        data: dict[str, Any] = {"asks": [asdict(ask) for ask in asks], "messages": messages}
        data |= top.end()
        said = messages[-1]["content"]
        question = " / ".join(text for a in asks for text in (a.said, a.owed) if text)
        key = f"{question} {top.start}"
        calls = tuple(top.calls)
        return Item(self.name, level, question, said, "", tools, calls, data, key)


def client(item: Item) -> Client:
    """Return the client of an item, who has said nothing yet."""
    return Client([Ask(**ask) for ask in item.data["asks"]])


def _order(rng: random.Random, top: Desktop, terse: bool) -> Wished:
    item = rng.choice(top.items)
    count = rng.randint(1, 2)
    said = top.call("order", item=item, count=count)
    if terse:
        return Ask(f"order {item}", str(count)), "how many?", said
    return Ask(f"order {count} {item}"), "", said


def _cancel(rng: random.Random, top: Desktop, terse: bool) -> Wished:
    number = rng.choice([row[0] for row in top.desk.state()["orders"] if row[3]])
    said = top.call("cancel", number=number)
    if terse:
        return Ask("cancel an order", str(number)), "which?", said
    return Ask(f"cancel order {number}"), "", said


def _stock(rng: random.Random, top: Desktop, terse: bool) -> Wished:
    item = rng.choice(top.items)
    said = top.call("stock", item=item)
    return Ask(f"how many {item}?", heard=said), "", said


WISHES: tuple[Callable[[random.Random, Desktop, bool], Wished], ...] = (_order, _cancel, _stock)
