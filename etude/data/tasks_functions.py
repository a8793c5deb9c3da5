"""Single functions of the standard library as tools: one to call, or two one after the other."""

import random
from collections.abc import Sequence

from etude.data.tasks_base import Call, Exact, Item
from etude.data.tools_real import REAL


class Functions(Exact):
    """`choose 2 of 9, then 14 mod 5`: the results are the answer; one more tool is on offer.

    Args:
        names: of the functions to draw from, at least three.
    """

    name = "functions"
    levels = 2

    def __init__(self, names: Sequence[str] = tuple(REAL)):
        self.names = list(names)

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a request of `level + 1` steps."""
        *used, other = rng.sample(self.names, level + 2)
        asked, calls = [], []
        for name in used:
            real = REAL[name]
            arguments = {key: value(rng) for key, value in real.arguments.items()}
            asked.append(rng.choice(real.asked).format(**arguments))
            calls.append(Call(name, arguments, real.call(**arguments)))
        answer = " ".join(call.result for call in calls)
        offered = tuple(rng.sample([*used, other], len(used) + 1))
        question = ", then ".join(asked)
        return Item(self.name, level, question, answer, "", offered, tuple(calls))
