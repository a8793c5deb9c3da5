"""Supervised micro-batches beside those of a policy, in one optimizer step.

The loss of a step is the policy's, over its own denominator, plus a weight times the mean loss of
the learnt tokens of chosen conversations (Kimi K2, arXiv:2507.20534, section 3.2.3). The trainer
divides everything by the policy's denominator, so each supervised batch carries what turns that
into its own. Like the policy's, it is counted over all micro-batches and ranks before the first
forward: how a step is cut does not change its gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from etude.nn.decoder import Scores
from etude.objectives.language import IGNORE, next_token
from etude.parallel.mesh import Ranks
from etude.rl.batch import RlBatch
from etude.rl.rows import Told, rows, uncounted
from etude.train.step import Micro, Objective
from etude.typing import Int, Tensor


class Rows(Protocol):
    """Padded or packed rows, as `data.loader.Batch` and `rl.rows.Rows` have them."""

    @property
    def ids(self) -> Int[Tensor, "B T"]:
        """Token ids."""
        ...

    @property
    def labels(self) -> Int[Tensor, "B T"]:
        """Targets, -100 where nothing is learnt."""
        ...

    @property
    def segments(self) -> Int[Tensor, "B T"]:
        """Document of each token, 0 for padding."""
        ...

    @property
    def pos(self) -> Int[Tensor, "B T"]:
        """Position in the document."""
        ...


@dataclass(frozen=True, slots=True)
class Supervised:
    """A micro-batch that is learnt by heart.

    Args:
        ids, labels, segments, pos: as `train.step.Micro`.
        scale: of each label's loss, once the trainer has divided by the policy's denominator.
        shown: of each label's loss in the log, likewise for the policy's labels.
        name: under which it is logged.
        tokens: labels that count as the policy's: none.
    """

    ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    segments: Int[Tensor, "B T"]
    pos: Int[Tensor, "B T"]
    scale: float
    shown: float
    name: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Extra:
    """What is learnt beside the policy in one step, on this rank.

    Args:
        name: in the log.
        batches: equally many on every rank.
        weight: of their mean loss.
    """

    name: str
    batches: Sequence[Rows]
    weight: float


def beside(
    policy: Sequence[RlBatch], extras: Sequence[Extra], objective: Objective, ranks: Ranks
) -> list[RlBatch | Supervised]:
    """Return a step's micro-batches with the supervised ones behind them.

    Args:
        policy: of the step, on this rank; where it has no signal on any rank, neither has the step,
            and nothing is added.
        extras: what is added.
        objective: of the policy; says its denominators.
        ranks: all bring equally many extras.
    """
    own = [sum(map(objective.denominator, policy)), float(sum(one.tokens for one in policy))]
    own += [float(sum(map(_learnt, extra.batches))) for extra in extras]
    counts = torch.tensor(own, dtype=torch.float64, device=ranks.device)
    whole, labels, *learnt = ranks.sum(counts).tolist()
    found: list[RlBatch | Supervised] = list(policy)
    if not labels:
        return found
    for extra, count in zip(extras, learnt, strict=True):
        if count:
            scale, shown = extra.weight * whole / count, labels / count
            found += [
                Supervised(one.ids, one.labels, one.segments, one.pos, scale, shown, extra.name)
                for one in extra.batches
            ]
    return found


def taught(told: Sequence[Told], size: int, ranks: Ranks) -> Sequence[Rows]:
    """Cut conversations into this rank's rows; a rank with none left gets one that counts nothing.

    Args:
        told: of all ranks, equal on each.
        size: rows of a micro-batch.
        ranks: who shares them.
    """
    order = sorted(told, key=lambda one: len(one.ids))
    found = []
    for start in range(0, len(order), size * ranks.world):
        own = order[start : start + size * ranks.world][ranks.rank :: ranks.world]
        found.append(rows(own or [uncounted(order[start])]))
    return found


@dataclass(frozen=True, slots=True)
class WithSupervised:
    """An objective for steps that hold both kinds of micro-batches.

    Args:
        policy: the objective of the policy's.
    """

    policy: Objective

    @property
    def entropy(self) -> bool:
        """Whether the policy's objective asks for entropies."""
        return bool(getattr(self.policy, "entropy", False))

    def __call__(self, scores: Scores, micro: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each token's loss, and values to log."""
        if not isinstance(micro, Supervised):
            return self.policy(scores, micro)
        loss, _ = next_token(scores.logp, micro.labels)
        return micro.scale * loss, {micro.name: micro.shown * loss}

    def denominator(self, micro: Micro) -> float:
        """Return the policy's part; supervised tokens carry their own."""
        return 0.0 if isinstance(micro, Supervised) else self.policy.denominator(micro)


def _learnt(batch: Rows) -> int:
    return int((batch.labels != IGNORE).sum())
