"""Between messages and tokens, for one system's chat format: openings, replies, observations."""

from collections.abc import Sequence

from etude.engine.request import Thinking
from etude.rl.environment import Chat, Start
from etude.text import chat
from etude.text.tokenizer import Tokenizer
from etude.text.turns import Message, parse


class Dialogue:
    """Writes openings and observations as ids, and reads the policy's ids as a message.

    Args:
        tokenizer: with the format's special tokens.
        format: name of the chat format.

    Attributes:
        stop: ids that end the policy's turn.
    """

    def __init__(self, tokenizer: Tokenizer, format: str | None = "glm45"):
        self.tokenizer, self.format = tokenizer, format
        self.stop = frozenset(chat.stop_ids(tokenizer, format))

    def opening(self, start: Start) -> list[int]:
        """Return the ids up to where the policy's first turn begins."""
        options = {"tools": start.tools, "thinking": start.thinking, "format": self.format}
        return chat.prompt(self.tokenizer, start.messages, **options)

    def thinking(self, start: Start, budget: int | None) -> Thinking | None:
        """Return how a turn's reasoning is bounded; None where it has none, or no bound."""
        if budget is None or not start.thinking or self.format is None:
            return None
        tags = chat.format_of(self.format).syntax.think
        if tags is None:
            return None
        open, close = (self.tokenizer.id(tag) for tag in tags)
        inside = chat.opened(thinking=True, format=self.format)
        return Thinking((close,), open, inside, budget)

    def read(self, tokens: Sequence[int], start: Start) -> Message:
        """Return the turn that `tokens` spell; its end token counts for the format."""
        text = self.tokenizer.decode(tokens)
        opened = chat.opened(thinking=start.thinking, format=self.format)
        return parse(text, start.tools or [], opened=opened, format=self.format)

    def observation(self, messages: Chat, start: Start) -> list[int]:
        """Return the ids of tool results and of the next turn's opening.

        They follow the token by which the policy asked for results, which it sampled itself.
        """
        options = {"thinking": start.thinking, "format": self.format}
        return chat.observation(self.tokenizer, messages, **options)
