"""The objective of every stage that reads text; RL stages bring their own."""

from dataclasses import dataclass

from etude.nn.decoder import Scores
from etude.objectives.aggregate import Aggregate, weights
from etude.objectives.language import IGNORE, next_token
from etude.train.step import Micro
from etude.typing import Tensor


@dataclass(frozen=True, slots=True)
class NextToken:
    """Cross-entropy of the labels: pre-training on all of them, fine-tuning on the trained turns.

    Args:
        aggregate: `token` or `sequence` mean, over the whole step; a sequence is a document, or a
            conversation, of a packed row.
    """

    aggregate: Aggregate = "token"

    def __call__(self, scores: Scores, micro: Micro, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each token's loss and nothing more."""
        return next_token(scores.logp, micro.labels, weight=self._share(micro))

    def denominator(self, micro: Micro, /) -> float:
        """Labels that count, or sequences that have one."""
        return float(self._share(micro).sum())

    def _share(self, micro: Micro) -> Tensor:
        return weights(micro.labels != IGNORE, self.aggregate, segments=micro.segments)
