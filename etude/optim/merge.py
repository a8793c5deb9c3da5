"""Weights of checkpoints whose sum is what a decaying learning rate would have left."""

from itertools import pairwise
from typing import Literal

from etude.optim.schedule import factor
from etude.recipe.parts import Schedule

Shape = Literal["linear", "sqrt", "cosine"]


def decay_weights(count: int, shape: Shape = "sqrt", *, final: float = 0.0) -> list[float]:
    """Return the weights of checkpoints at equal distances, in their order.

    From the first checkpoint on, the updates of the i-th stretch between two would have been d_i
    times as large, had the rate fallen there: theta = theta_0 + sum_i d_i (theta_i - theta_i-1),
    which is sum_i (d_i - d_i+1) theta_i with d_0 = 1 and 0 behind the last. That the gradients
    would have been the same is the approximation. d_i is the factor in the middle of its stretch.

    Args:
        count: how many checkpoints, at least two.
        shape: of the decay that is emulated.
        final: its last factor.

    Source: Nemotron 3 Super, arXiv:2604.12374, which merges checkpoints of its stable phase so; the
    sum is written out by us.
    """
    if count < 2:
        raise ValueError(f"{count} checkpoints cannot be merged; at least two can")
    spec = Schedule(shape="wsd", decay=1.0, decay_shape=shape, final=final)
    stretches = range(1, count)
    falls = [factor(spec, 2 * i - 1, 2 * (count - 1)) for i in stretches]
    steps = [1.0, *falls, 0.0]
    return [before - after for before, after in pairwise(steps)]
