"""Conversations for fine-tuning, made from checkable tasks and a few written lines.

The same question is asked with and without thinking, so the model learns both modes from equal
data. Held-out questions never appear.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from etude.data.messages import assistant as assistant
from etude.data.messages import exchange as exchange
from etude.data.messages import user as user
from etude.data.synth_lines import LINES
from etude.data.tasks import Item, draw
from etude.data.tasks_reflect import reflected
from etude.errors import EtudeError
from etude.recipe.parts import TaskMix


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation in the shape that `etude.text.chat` takes.

    Attributes:
        messages: turns with `role` and `content`.
        tools: schemas of the tools shown to the model.
        thinking: whether the model is asked to think.
        train: which of the model's turns are learnt: all, or what follows the last question.
        kept: share of the last reasoning after which it is cut; None = whole.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False
    train: Literal["assistant", "reply"] = "assistant"
    kept: float | None = None


def solution(item: Item, *, thinking: bool) -> Chat:
    """Return the worked solution of an item: its question, its tool calls, its answer.

    Args:
        item: any task.
        thinking: whether the model thinks first; an item without written steps gets empty
            reasoning, so that the model also learns when not to think at length.
    """
    messages = list(item.data.get("messages", ()))  # where the user says more than the question
    if not messages:
        messages = [user(item.question)]
        for call in item.calls:
            messages += exchange(call.name, call.arguments, call.result)
        messages.append(assistant(item.answer, item.steps if thinking else ""))
    return Chat(messages, [tool.schema() for tool in item.toolset()], thinking)


def sft(
    tasks: Mapping[str, TaskMix],
    count: int,
    seed: int,
    *,
    thinking: float = 0.5,
    lines: float = 0.0,
) -> Iterator[Chat]:
    """Yield conversations for supervised fine-tuning.

    Args:
        tasks: family -> how often, at which levels, and which share with thinking (by default
            `thinking` where a family has written steps, none where it has not), and which share
            of written steps goes wrong once.
        count: how many.
        seed: decides all of them.
        thinking: share answered with written reasoning.
        lines: share of small talk.

    Raises:
        EtudeError: an unknown family or level, or nothing to draw from.
    """
    if not tasks and lines <= 0:
        raise EtudeError("chats.tasks", "no task and no lines", "at least one family")
    rng = random.Random(seed)
    names = list(tasks)
    weights = [tasks[name].weight for name in names]
    for _ in range(count):
        if not names or rng.random() < lines:
            yield line(rng, thinking=rng.random() < thinking)
            continue
        name = rng.choices(names, weights)[0]
        mix = tasks[name]
        level = rng.choices(list(mix.levels), list(mix.levels.values()))[0]
        item = draw(name, rng, level, tuning=mix.tuning)
        if mix.reflect and rng.random() < mix.reflect:
            item = reflected(item, rng)
        share = mix.thinking if mix.thinking is not None else thinking if item.steps else 0.0
        yield solution(item, thinking=rng.random() < share)


def line(rng: random.Random, *, thinking: bool) -> Chat:
    """Return one small exchange, sometimes with a second one after it."""
    messages = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        asked, said = rng.choice(LINES)
        messages += [user(rng.choice(asked)), assistant(said)]
    return Chat(messages, thinking=thinking)
