"""What a small vocabulary should also have seen: letters, tasks, tool blocks and conversations."""

import random
from collections.abc import Iterator

from etude.data.synth_agent import agent
from etude.data.synth_chats import sft
from etude.data.synth_traces import traces
from etude.data.tasks_chain import LETTERS
from etude.recipe.parts import TaskMix
from etude.text import chat

ALPHABETS = 5000  # so often that every letter with the space before it becomes one token
FAMILIES = ("sum", "var", "rev", "sort", "calc", "lookup", "instruct", "code")


def vocabulary(count: int = 1000, seed: int = 0, *, format: str = "glm45") -> Iterator[str]:
    """Yield texts to train a vocabulary on, beside a sample of the corpus.

    Args:
        count: traces, conversations, and trajectories of each.
        seed: decides all of them.
        format: chat format whose fixed words should be cheap, in `etude.text.chat.FORMATS`.
    """
    rng = random.Random(seed)
    yield from (" " + " ".join(rng.sample(LETTERS, len(LETTERS))) for _ in range(ALPHABETS))
    yield from (document.text for document in traces(count, seed))
    mix = {name: TaskMix() for name in FAMILIES}
    for made in (sft(mix, count, seed, lines=0.2), agent(count, seed)):
        for one in made:
            yield chat.render(
                one.messages, tools=one.tools or None, thinking=one.thinking, format=format
            )
