"""Reasoning that goes wrong once, notices, and goes on rightly.

The cold start of MiniMax-M1 is trained on long reasoning with reflection (arXiv:2506.13585, section
2.2), so that reinforcement learning finds the words that turn back: "wait" must be rare, not
unknown. There people and models wrote it; here one computed step gets a wrong result, and the same
step with the right one follows behind the word. How often, and which word, is our choice.
"""

import random
import re
from dataclasses import replace

from etude.data.tasks_base import Item

WORD = "wait"
NEAR = 9  # a wrong result is at most so far from the right one
EQUATION = re.compile(r"(.*\d ?[-+*/x\u00d7] ?\d.*= ?)(\d+)")  # a computed step, and its result


def reflected(item: Item, rng: random.Random) -> Item:
    """Return the item with a wrong step before one of its steps; as it is if none is computed.

    `4+9=13 13-3=10` may become `4+9=13 13-3=8 wait 13-3=10`. The answer stays.
    """
    border = "\n" if "\n" in item.steps else " "
    steps = item.steps.split(border)
    computed = [n for n, step in enumerate(steps) if EQUATION.fullmatch(step)]
    if not computed:
        return item
    at = rng.choice(computed)
    found = EQUATION.fullmatch(steps[at])
    assert found
    right = int(found[2])
    wrong = rng.choice([n for n in range(max(0, right - NEAR), right + NEAR + 1) if n != right])
    steps[at : at + 1] = [f"{found[1]}{wrong}", f"{WORD} {steps[at]}"]
    return replace(item, steps=border.join(steps))
