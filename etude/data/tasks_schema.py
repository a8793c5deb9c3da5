"""Questions for real tools: the right one of those on offer, called with what the question says."""

import random

from etude.data.tasks_base import Call, Exact, Item
from etude.data.tools_real import REAL


class Schema(Exact):
    """One tool on offer, two, or three; the question names neither the tool nor its arguments."""

    name = "schema"
    levels = 3

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a question for one of `level + 1` tools; what it says is the answer."""
        offered = rng.sample(list(REAL), level + 1)
        real = REAL[rng.choice(offered)]
        arguments = {name: draw(rng) for name, draw in real.arguments.items()}
        question = rng.choice(real.asked).format(**arguments)
        result = real.call(**arguments)
        call = Call(real.name, arguments, result)
        key = f"{real.name}{list(arguments.values())}"
        return Item("schema", level, question, result, "", tuple(offered), (call,), key=key)
