"""Where rollouts come from: the interface between RL and whatever produces tokens.

The engine in this process is one sampler (`rl.local`); a server elsewhere can be another.
Everything a sampler needs to repeat an answer is in the prompt, so a rollout does not depend on
who else is in its batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from etude.engine.request import Thinking
from etude.files import digest


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request.

    Args:
        ids: the tokens so far, template included.
        seed: what the answer's randomness depends on, together with position and ids.
        max_tokens: longest answer, where that is less than all prompts of the call may have.
        thinking: how much reasoning it may hold, and by which token that is closed.
    """

    ids: list[int]
    seed: int = 0
    max_tokens: int | None = None
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample, the same for all prompts of a call.

    Args:
        max_tokens: longest answer, stop token included.
        temperature: 0 is greedy.
        stop: tokens that end an answer.
        repetition: so many tokens in a row, each more probable than this, end an answer early.
        routes: also say which experts each token chose.
    """

    max_tokens: int
    temperature: float = 1.0
    stop: frozenset[int] = frozenset()
    repetition: tuple[int, float] | None = None
    routes: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Args:
        tokens: as produced, the stop token included when one was hit.
        logp: log-probability of each, at the sampling temperature.
        finish: `stop`, `length` when cut, or `repetition`.
        version: of the weights that produced its last token.
        versions: of the weights that produced each; None = all `version`.
        routes: int16 [n, layers, active], experts of the first n ids of prompt and answer; None
            where they are not asked for.
        forced: places of the tokens that the sampler had no choice in: a budget closed reasoning.
    """

    tokens: list[int]
    logp: list[float]
    finish: str
    version: int
    versions: list[int] | None = None
    routes: Tensor | None = None
    forced: tuple[int, ...] = ()


class Sampler(Protocol):
    """Anything that continues prompts under the newest weights it was given."""

    version: int

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer each prompt, in order."""
        ...

    async def update(self, weights: Mapping[str, Tensor] | None, version: int) -> None:
        """Take the policy's new weights (None: they are shared already) and call them `version`."""
        ...


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed that names the parts, the same in every process."""
    return int(digest(*(str(part) for part in parts)), 16) >> 1
