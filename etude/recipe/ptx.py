"""Supervised tokens among those of reinforcement learning."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from etude.recipe.chats import Chats
from etude.recipe.numbers import CONFIG, Positive, Rate


@dataclass(frozen=True, slots=True, config=CONFIG)
class Ptx:
    """A loss on chosen conversations in every step of RL.

    It keeps what the rewards do not ask for (Kimi K2, arXiv:2507.20534, section 3.2.3; the report
    gives neither weight nor amount).

    Args:
        data: the conversations, as in fine-tuning.
        weight: of the mean loss of their learnt tokens, added to the policy's loss.
        rows: rows of conversations per optimizer step.
    """

    data: Chats
    weight: Rate = 0.1
    rows: Annotated[Positive, Field(le=4096)] = 8
