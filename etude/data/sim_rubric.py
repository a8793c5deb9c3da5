"""What a good attempt is, task by task, and a judge that holds an attempt to it.

Every task comes with success criteria, the tools that belong to it and checkpoints on the way, and
only what passes is trained on (Kimi K2, arXiv:2507.20534, section 3.1.1, where a language model
judges; here rules do).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etude.data.sim_users import Wish

CALLS = 4  # of one tool for one wish at most; more is fumbling


@dataclass(frozen=True, slots=True)
class Rubric:
    """What an attempt is held to.

    Attributes:
        shelves: where each thing must be at the end, after what could be done.
        tools: names and arguments of the calls that belong to the task; no other may be made.
        asks: whether the model must ask back before it calls anything.
        says: what the model's answers must hold, one a wish.
    """

    shelves: dict[str, str]
    tools: frozenset[tuple[str, ...]]
    asks: bool
    says: tuple[str, ...]


def rubric(wishes: Sequence[Wish], things: dict[str, str], *, asks: bool, room: int) -> Rubric:
    """Work out a task's rubric from its wishes, the world as it was, and the room on a shelf.

    A wish for a full shelf cannot be granted: the thing stays, and the model must say so.
    """
    shelves, calls, says = dict(things), set(), []
    for wish in wishes:
        if wish.kind == "find":
            calls.add(("find", wish.item))
            says.append(shelves.get(wish.item, "no"))
            continue
        calls.add(("put", wish.item, wish.shelf))
        granted = list(shelves.values()).count(wish.shelf) < room
        says.append("done" if granted else "full")
        if granted:
            shelves[wish.item] = wish.shelf
    return Rubric(shelves, frozenset(calls), asks, tuple(says))


def judge(messages: Sequence[dict[str, Any]], after: dict[str, str], of: Rubric) -> tuple[str, ...]:
    """Return what an attempt fails in; nothing is a pass.

    Args:
        messages: the whole conversation.
        after: the world at its end.
        of: what is asked of it.
    """
    turns = [m for m in messages if m["role"] == "assistant"]
    calls = [c["function"] for m in turns for c in m.get("tool_calls", ())]
    made = [(call["name"], *call["arguments"].values()) for call in calls]
    said = [m["content"] for m in turns if not m.get("tool_calls")]
    answers = [text for text in said if not text.endswith("?")]
    asked = bool(turns) and not turns[0].get("tool_calls") and turns[0]["content"].endswith("?")
    checks = {
        "the world is not as it was wished": after == of.shelves,
        "a call that does not belong to the task": set(made) <= of.tools,
        "a call that the task needs is missing": set(made) >= of.tools,
        "fumbled": len(made) <= CALLS * len(of.says),
        "did not ask for what it could not know": asked == of.asks,
        "an answer does not tell what happened": len(answers) == len(of.says)
        and all(word in text for word, text in zip(of.says, answers, strict=True)),
    }
    return tuple(fault for fault, passed in checks.items() if not passed)
