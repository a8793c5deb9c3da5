"""Verifiable tasks: the table of families, the held-out split, and exact scores.

The same questions serve reasoning traces, fine-tuning, reinforcement learning and evaluation. One
question in five, by hash, is held out: nothing that trains may draw it.
"""

import json
import random
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from etude.data.tasks_base import Call, Family, Item, Reply
from etude.data.tasks_chain import THINKING_FAMILIES, Sum, Var
from etude.data.tasks_code import Code
from etude.data.tasks_desk import Work
from etude.data.tasks_desk_user import Counter
from etude.data.tasks_fact import Fact
from etude.data.tasks_functions import Functions
from etude.data.tasks_gym import PREFIX, Gym
from etude.data.tasks_instruct import Instruct
from etude.data.tasks_judge import Judge
from etude.data.tasks_letters import Reverse, Sort
from etude.data.tasks_math import Math
from etude.data.tasks_pathology import Pathology
from etude.data.tasks_recall import Recall
from etude.data.tasks_schema import Schema
from etude.data.tasks_search import Search
from etude.data.tasks_served import Clock, Commits
from etude.data.tasks_tool import Calculate, Lookup
from etude.data.tasks_unit import Unit
from etude.errors import EtudeError, closest
from etude.files import digest

__all__ = [
    "FAMILIES",
    "THINKING_FAMILIES",
    "Call",
    "Family",
    "Item",
    "draw",
    "family",
    "held_out",
    "items",
    "score",
]

FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (
        Sum(),
        Var(),
        Reverse(),
        Sort(),
        Recall(),
        Calculate(),
        Lookup(),
        Schema(),
        Fact(),
        Instruct(),
        Code(),
        Unit(),
        Math(),
        Pathology(),
        Judge(),
        Functions(),
        Search(),
        Work(),
        Clock(),
        Commits(),
        Counter(),
    )
}
OUTSIDE = ("verifiers:",)  # names whose questions come from elsewhere, see `etude.rl.kinds`
HELD_OUT = 5  # one question in this many
TRIES = 1000
DRY = 200  # after this many repeats in a row a family has no more questions


def family(name: str, tuning: Mapping[str, Any] | None = None) -> Family:
    """Return a family by name; `rg:<name>` is one of reasoning-gym.

    Args:
        name: as in recipes.
        tuning: knobs of a generator, see `tasks_gym.Gym`.

    Raises:
        EtudeError: no such family, no such knob, or reasoning-gym is not installed.
    """
    if name.startswith(PREFIX):
        return _gym(name, json.dumps(tuning or {}, sort_keys=True))
    if tuning and name in FAMILIES:
        raise EtudeError(f"task {name}", f"{', '.join(tuning)} given", f"only with {PREFIX}NAME")
    if name not in FAMILIES:
        known = ", ".join([*FAMILIES, *(f"{head}NAME" for head in (PREFIX, *OUTSIDE))])
        head, mark, _ = name.partition(":")
        near = closest(head + mark, [*FAMILIES, PREFIX, *OUTSIDE])
        raise EtudeError(f"task {name}", "no such family", known, near)
    return FAMILIES[name]


@cache
def _gym(name: str, tuning: str) -> Family:
    return Gym(name, json.loads(tuning))


def held_out(item: Item) -> bool:
    """Return whether a question belongs to the one in five that is never trained on."""
    return int(digest(item.family, item.key or item.question), 16) % HELD_OUT == 0


def draw(
    name: str,
    rng: random.Random,
    level: int,
    *,
    held: bool = False,
    tuning: Mapping[str, Any] | None = None,
) -> Item:
    """Return one question of a family from the training side of the split, or from the other.

    Raises:
        EtudeError: no such family or level, or a level with too few questions to have any on that
        side.
    """
    source = family(name, tuning)
    if not 0 <= level < source.levels:
        raise EtudeError(f"task {name}", f"level {level}", f"0 to {source.levels - 1}")
    for _ in range(TRIES):
        item = source.sample(rng, level)
        if held_out(item) == held:
            return item
    side = "held out" if held else "for training"
    raise EtudeError(
        f"task {name}", f"level {level} has no question {side}", do="choose another level"
    )


def items(name: str, level: int, count: int, seed: int, *, held: bool = False) -> list[Item]:
    """Return `count` questions, all different while the family has that many."""
    rng = random.Random(digest(name, str(level), str(seed), str(held)))
    found: dict[str, Item] = {}
    again: list[Item] = []
    missed = 0
    while len(found) + len(again) < count:
        item = draw(name, rng, level, held=held)
        content = f"{item.question}\n{item.answer}"
        missed = missed + 1 if content in found else 0
        if not missed:
            found[content] = item
        elif missed > DRY:
            again.append(item)
    return [*found.values(), *again]


def score(item: Item, reply: Reply | str) -> float:
    """Return 1 if a reply answers the item, else 0, whatever the parser says of its form."""
    return family(item.family, item.data.get("tuning")).score(item, reply)


def accuracy(pairs: Iterable[tuple[Item, Reply | str]]) -> float:
    """Return the mean score of items and their replies; 0 when there are none."""
    scores = [score(item, reply) for item, reply in pairs]
    return sum(scores) / len(scores) if scores else 0.0
