"""Where the models come from that reward: the policy as it is, or finished stages."""

from collections.abc import Callable
from dataclasses import dataclass

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.rl.dialogue import Dialogue
from etude.rl.judge import Ask, asker
from etude.rl.local import LocalSampler
from etude.rl.reward_model import RewardModel
from etude.rl.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Stages:
    """How the models of other stages are opened, by name.

    Args:
        writer: a stage that writes.
        scalar: a stage that scores.
    """

    writer: Callable[[str], Decoder]
    scalar: Callable[[str], RewardModel]


class Judges:
    """`judge_terms.Models` for a stage that trains.

    Args:
        sampler: of the policy.
        dialogue: how messages are written down, for the policy and for the others.
        stages: the others; None = there are none.
    """

    def __init__(self, sampler: Sampler, dialogue: Dialogue, stages: Stages | None):
        self.sampler, self.dialogue, self.stages = sampler, dialogue, stages

    def ask(self, by: str) -> Ask:
        """Return what asks the policy (`self`) or a stage."""
        if by == "self":
            return asker(self.sampler, self.dialogue)
        return asker(LocalSampler(self._stages(by).writer(by).eval()), self.dialogue)

    def scalar(self, by: str) -> RewardModel:
        """Return a stage's reward model."""
        return self._stages(by).scalar(by)

    def _stages(self, by: str) -> Stages:
        if self.stages is None:
            raise EtudeError("rewards", f"stage {by} judges, outside of a run", "by: self")
        return self.stages
