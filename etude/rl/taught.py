"""A source of rollouts with conversations beside them: what an RL stage learns by heart."""

from collections.abc import Callable, Mapping
from typing import Any

from etude.data.loader import Loader
from etude.parallel.mesh import Ranks
from etude.recipe.stages import Rl
from etude.rl.judge import Lesson
from etude.rl.objective import policy_objective
from etude.rl.ptx import Extra, beside, taught
from etude.rl.rows import Told
from etude.rl.source import MICRO_ROWS, RolloutSource
from etude.train.loop import Progress
from etude.train.step import Micro
from etude.typing import Tensor


class Taught:
    """`train.loop.Source`: the steps of a stage, and supervised micro-batches behind each.

    Args:
        source: of rollouts.
        spec: the stage.
        rows: the conversations of `spec.ptx`; None = there are none.
        encode: a lesson for the policy as a judge, as a conversation in ids.
        ranks: the processes that train together; the rows of a step are shared out evenly.
    """

    def __init__(
        self,
        source: RolloutSource,
        spec: Rl,
        rows: Loader | None,
        encode: Callable[[Lesson], Told],
        ranks: Ranks,
    ):
        self.source, self.spec, self.rows = source, spec, rows
        self.encode, self.ranks = encode, ranks
        self.objective = policy_objective(spec)

    def next(self, progress: Progress) -> list[Micro]:
        """Return a step's micro-batches; a step without signal has none of either kind."""
        policy, size = self.source.next(progress), self.spec.batch.micro or MICRO_ROWS
        lessons, self.source.terms.lessons = self.source.terms.lessons, []
        if not policy:
            return []
        extras = []
        if self.rows is not None and self.spec.ptx is not None:
            batch = self.rows.next(self.spec.ptx.rows)
            extras.append(Extra("ptx", batch.split(size), self.spec.ptx.weight))
        for weight, asked in lessons:
            told = [self.encode(one) for one in asked]
            extras.append(Extra("judge_loss", taught(told, size, self.ranks), weight))
        return list(beside(policy, extras, self.objective, self.ranks))

    def metrics(self) -> dict[str, float]:
        """Return those of the rollouts."""
        return self.source.metrics()

    def tensors(self) -> dict[str, Tensor]:
        """Return those of the rollouts."""
        return self.source.tensors()

    def state(self) -> dict[str, Any]:
        """Return where rollouts and conversations stand."""
        return {"source": self.source.state(), "rows": self.rows and self.rows.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.source.restore(state["source"])
        if self.rows is not None:
            self.rows.restore(state["rows"])


def needs(spec: Rl) -> bool:
    """Say whether a stage learns anything by heart."""
    return spec.ptx is not None or any(getattr(term, "refresh", 0) for term in spec.rewards)
