"""From one loss per token to one number: the weights by which a whole optimizer step is averaged.

The average is sum(weights * loss) / sum(weights) with **both** sums over all micro-batches and
ranks of the step. The trainer computes the lower sum once, before the first micro-batch; averaging
the means of micro-batches instead would weigh their tokens by how the batch happened to be cut.
"""

from typing import Literal

import torch

from etude.typing import Bool, Float, Tensor

Aggregate = Literal["token", "sequence"]


def weights(mask: Bool[Tensor, "B T"], aggregate: Aggregate = "token") -> Float[Tensor, "B T"]:
    """How much each token counts; the sum of the result is the batch's part of the denominator.

    Args:
        mask: true on tokens that are trained.
        aggregate: `token` counts every token alike, so long sequences weigh more; `sequence` counts
            every row alike that has a trained token, by the mean over its own tokens.

    Returns:
        Weights, zero where masked. A row without a trained token adds nothing to either sum.

    Source: DeepSeekMath, arXiv:2402.03300, equation 3 (`sequence`); DAPO, arXiv:2503.14476, section
    3.3 (`token`).
    """
    counted = mask.float()
    if aggregate == "token":
        return counted
    return counted / torch.clamp(counted.sum(dim=1, keepdim=True), min=1.0)
