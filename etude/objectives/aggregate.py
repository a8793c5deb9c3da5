"""From one loss per token to one number: the weights by which a whole optimizer step is averaged.

The average is sum(weights * loss) / sum(weights) with **both** sums over all micro-batches and
ranks of the step. The trainer computes the lower sum once, before the first micro-batch; averaging
the means of micro-batches instead would weigh their tokens by how the batch happened to be cut.
"""

from typing import Literal

import torch

from etude.typing import Bool, Float, Int, Tensor

Aggregate = Literal["token", "sequence"]


def weights(
    mask: Bool[Tensor, "B T"],
    aggregate: Aggregate = "token",
    *,
    segments: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """How much each token counts; the sum of the result is the batch's part of the denominator.

    Args:
        mask: true on tokens that are trained.
        aggregate: `token` counts every token alike, so long sequences weigh more; `sequence` counts
            sequence alike that has a trained token, by the mean over its own tokens.
        segments: number of each token's sequence in its row; None = a row is one sequence.

    Returns:
        Weights, zero where masked. A sequence without a trained token adds nothing to either sum.

    Source: DeepSeekMath, arXiv:2402.03300, equation 3 (`sequence`); DAPO, arXiv:2503.14476, section
    3.3 (`token`); over packed conversations: Nemotron 3 Super, arXiv:2604.12374, whose fine-tuning
    takes `token` first and `sequence` then.
    """
    counted = mask.float()
    if aggregate == "token":
        return counted
    if segments is None:
        return counted / torch.clamp(counted.sum(dim=1, keepdim=True), min=1.0)
    rows, width = mask.shape  # a row has at most as many sequences as tokens
    sizes = torch.zeros(rows, width + 1, device=mask.device).scatter_add_(1, segments, counted)
    return counted / torch.clamp(sizes.gather(1, segments), min=1.0)
