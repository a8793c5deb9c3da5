"""The loss of a reward model: the chosen answer of a pair should score above the rejected one."""

import torch.nn.functional as F

from etude.typing import Float, Tensor


def bradley_terry(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    *,
    margin: float = 0.0,
    centring: float = 0.0,
) -> Float[Tensor, " P"]:
    """-ln sigma(r_c - r_r - m) + c (r_c + r_r)^2, of each pair.

    Args:
        chosen, rejected: scalar rewards.
        margin: by how much the chosen one should win.
        centring: weight that keeps rewards around 0, which the first term leaves open; 0.01 in the
            paper.

    Source: InstructGPT, arXiv:2203.02155, equation 1; margin: Llama 2, arXiv:2307.09288, equation
    2; centring: arXiv:2312.09244, section 2.
    """
    loss = -F.logsigmoid(chosen - rejected - margin)
    return loss + centring * (chosen + rejected).square()
