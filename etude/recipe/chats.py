"""Conversations of a fine-tuning stage: which tasks, how many turns, how much reasoning."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.numbers import CONFIG, Count, Positive, Share, added


def tuned(
    knobs: Mapping[str, Any], attributes: Mapping[str, int], threshold: float = 1.0
) -> dict[str, Any]:
    """Return the settings of a generator that are not its own, empty where none is."""
    held = {"knobs": dict(knobs), "attributes": dict(attributes)}
    given: dict[str, Any] = {name: values for name, values in held.items() if values}
    return given | ({"threshold": threshold} if threshold != 1 else {})


@dataclass(frozen=True, slots=True, config=CONFIG)
class TaskMix:
    """How often one family of checkable tasks is drawn, and at which levels.

    Args:
        weight: share relative to the other families.
        levels: weight by level.
        thinking: share of items answered with written reasoning; None takes the stage's value.
        reflect: share of written reasoning with a wrong step that is noticed and corrected, where
            the steps are equations.
        knobs, attributes: of an `rg:` generator, as an environment has them.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    levels: dict[int, Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: {0: 1.0})
    thinking: Share | None = None
    reflect: Share = 0.0
    knobs: dict[str, Any] = added(default_factory=dict)
    attributes: dict[str, Count] = added(default_factory=dict)

    @property
    def tuning(self) -> dict[str, Any]:
        """What differs from the generator's own settings, as `etude.data.tasks` takes it."""
        return tuned(self.knobs, self.attributes)


@dataclass(frozen=True, slots=True, config=CONFIG)
class Budget:
    """Reasoning that is cut short, so that the model can answer when its thoughts are ended.

    Args:
        share: of the conversations that end with reasoning, those in which it is cut after a random
            number of its tokens; the answer stays (Nemotron 3 Nano: 0.03).
        learn_end: whether the closing tag of a cut reasoning is learnt, and the white space before
            it. Whoever keeps the budget writes them, so Nemotron 3 Ultra masks them; Nano and Super
            say nothing of it.
    """

    share: Share = 0.0
    learn_end: bool = False


@dataclass(frozen=True, slots=True, config=CONFIG)
class Chats:
    """Conversations with loss masks, made from checkable tasks and written lines.

    Args:
        tasks: family name -> how often and how hard.
        items: conversations to make; drawn without the held-out questions.
        thinking: share answered with reasoning (the rest renders an empty `<think></think>`).
        lines: share of small-talk lines.
        simulated: share of conversations in which a simulated user has a tool's world changed, kept
            where a rubric is met (Kimi K2 section 3.1.1).
        agentic: share of tool conversations made in four steps and kept where all judges agree
            (GLM-4.5 section 3.1), see `etude.data.agentic`.
        replay: share of each step's tokens taken from `replay_mix`, against forgetting.
        replay_mix: mixture of text sets for the replay.
        length: longest conversation; longer ones are left out and counted.
        turns: questions that are joined to one conversation, from 1 to so many, all with or all
            without reasoning; a question with tools stays alone.
        split: whether a conversation with reasoning before its last question becomes one per
            question, in which only what follows the last question is learnt and earlier reasoning
            is dropped (Nemotron 3).
        budget: how reasoning is cut.
    """

    tasks: dict[str, TaskMix]
    items: Positive = 4000
    thinking: Share = 0.5
    lines: Share = 0.0
    simulated: Share = 0.0
    agentic: Share = added(0.0)
    replay: Share = 0.0
    replay_mix: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    length: Positive = 256
    turns: Positive = 1
    split: bool = False
    budget: Budget = Field(default_factory=Budget)
