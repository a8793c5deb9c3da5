"""Work at an order desk: one call, two, or three and four that depend on each other.

An item holds the desk at the start and as its worked solution leaves it. The calls are made by the
desk itself, so their results are true; `etude.rl.env_mcp` plays the same in an MCP server.
"""

import random
from collections.abc import Callable
from typing import Any

from etude.data.sim_desk import Desk
from etude.data.tasks_base import Call, Exact, Item
from etude.data.tasks_tool import WORDS
from etude.data.tools_served import SERVED

ITEMS, ORDERS = 3, 2  # kinds in stock, open orders
NAMES = tuple(tool["function"]["name"] for tool in SERVED["desk"])


class Desktop:
    """A desk at work in memory, which notes the calls made.

    Args:
        rng: decides stock and orders.

    Attributes:
        start, items, orders: how the desk began.
        calls: made so far.
    """

    def __init__(self, rng: random.Random):
        self.items = rng.sample(WORDS, ITEMS)
        stock = [[item, rng.randint(4, 9)] for item in self.items]
        numbers = rng.sample(range(11, 100), ORDERS)
        self.orders = [[n, rng.choice(self.items), rng.randint(1, 4)] for n in numbers]
        self.start: dict[str, Any] = {"stock": stock, "orders": self.orders}
        self.desk = Desk.new(":memory:", self.start)
        self.calls: list[Call] = []

    def call(self, name: str, **arguments: Any) -> str:
        """Make a call and note it."""
        result = getattr(self.desk, name)(**arguments)
        self.calls.append(Call(name, arguments, result))
        return result

    def end(self) -> dict[str, Any]:
        """Return the start and the state now, and close the desk."""
        after = self.desk.state()
        self.desk.close()
        return {"start": self.start, "after": after}


class Work(Exact):
    """`order 3 lamp`, `order all tree`, `change order 12 to boat`: see `LEVELS`.

    The answer counts where the question asks for something (`asked`); the state always does.
    """

    name = "mcp:desk"
    levels = 3

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a task of this level with the tools it needs and one that it does not."""
        top = Desktop(rng)
        question, answer, asked = rng.choice(LEVELS[level])(rng, top)
        used = dict.fromkeys(call.name for call in top.calls)
        other = rng.choice([name for name in NAMES if name not in used])
        tools = tuple(rng.sample([*used, other], len(used) + 1))
        data = {"asked": asked} | top.end()
        key = f"{question} {top.start}"
        return Item(self.name, level, question, answer, "", tools, tuple(top.calls), data, key)


Task = tuple[str, str, bool]  # question, answer, whether the answer counts


def _stock(rng: random.Random, top: Desktop) -> Task:
    item = rng.choice(top.items)
    return f"how many {item}?", top.call("stock", item=item), True


def _order(rng: random.Random, top: Desktop) -> Task:
    item, most = rng.choice(top.start["stock"])
    count = rng.randint(1, most)
    return f"order {count} {item}", top.call("order", item=item, count=count), False


def _cancel(rng: random.Random, top: Desktop) -> Task:
    number = rng.choice(top.orders)[0]
    return f"cancel order {number}", top.call("cancel", number=number), False


def _status(rng: random.Random, top: Desktop) -> Task:
    number = rng.choice(top.orders)[0]
    return f"what is order {number}?", top.call("status", number=number), True


def _all(rng: random.Random, top: Desktop) -> Task:
    item = rng.choice(top.items)
    count = int(top.call("stock", item=item))
    return f"order all {item}", top.call("order", item=item, count=count), False


def _noted(rng: random.Random, top: Desktop) -> Task:
    number = rng.choice(top.orders)[0]
    told = top.call("status", number=number)
    return f"note what order {number} is", top.call("note", text=told), False


def _again(rng: random.Random, top: Desktop) -> Task:
    """Cancel first, then see how many there are."""
    number, item, _ = rng.choice(top.orders)
    top.call("cancel", number=number)
    return f"cancel order {number}, how many {item}?", top.call("stock", item=item), True


def _change(rng: random.Random, top: Desktop) -> Task:
    """The new order has as many pieces as the old one had."""
    number = rng.choice(top.orders)[0]
    was, count = top.call("status", number=number).split()[::-1]
    item = rng.choice([one for one in top.items if one != was])
    top.call("cancel", number=number)
    made = top.call("order", item=item, count=int(count))
    return f"change order {number} to {item}", made, False


def _refill(rng: random.Random, top: Desktop) -> Task:
    """Cancel, order all there is then, and note the new order."""
    number, item, _ = rng.choice(top.orders)
    top.call("cancel", number=number)
    count = int(top.call("stock", item=item))
    made = top.call("order", item=item, count=count)
    top.call("note", text=made)
    return f"cancel order {number}, order all {item}, note it", made, False


LEVELS: tuple[tuple[Callable[[random.Random, Desktop], Task], ...], ...] = (
    (_stock, _order, _cancel, _status),
    (_all, _noted, _again),
    (_change, _refill),
)
