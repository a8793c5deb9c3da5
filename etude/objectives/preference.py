"""Preference losses: a chosen answer beside a rejected one, per pair.

All take what `pair_sum` or `pair_mean` made of the log-probabilities of an answer's tokens. Where
a reference is compared with, the margin is d = (chosen - its reference) - (rejected - its
reference), and b d is the difference of the two implicit rewards.
"""

import torch
import torch.nn.functional as F

from etude.typing import Bool, Float, Tensor


def pair_sum(logp: Float[Tensor, "P T"], mask: Bool[Tensor, "P T"]) -> Float[Tensor, " P"]:
    """Log-probability of each answer in nats: the sum over its tokens."""
    return torch.where(mask, logp, 0.0).sum(1)


def pair_mean(logp: Float[Tensor, "P T"], mask: Bool[Tensor, "P T"]) -> Float[Tensor, " P"]:
    """Log-probability per token of each answer; 0 for one without a token."""
    return pair_sum(logp, mask) / mask.sum(1).clamp(min=1)


def sigmoid(
    d: Float[Tensor, " P"], *, beta: float = 0.1, smoothing: float = 0.0
) -> Float[Tensor, " P"]:
    """-(1 - e) ln sigma(b d) - e ln sigma(-b d): DPO, and with e > 0 its conservative form.

    Args:
        d: margin, of sums for DPO, of means for its length-normalised form (`sigmoid_norm`).
        beta: how far the policy may leave the reference; small = far.
        smoothing: chance e that a label is wrong.

    Source: DPO, arXiv:2305.18290, equation 7; smoothing: Mitchell's note on noisy labels (2023);
    means: Tulu 3, arXiv:2411.15124, section 5.
    """
    return -(1 - smoothing) * F.logsigmoid(beta * d) - smoothing * F.logsigmoid(-beta * d)


def hinge(d: Float[Tensor, " P"], *, beta: float = 0.1) -> Float[Tensor, " P"]:
    """max(0, 1 - b d): no gradient once a pair is far enough apart.

    Source: SLiC-HF, arXiv:2305.10425, section 3, with the rewards of DPO.
    """
    return F.relu(1 - beta * d)


def ipo(d: Float[Tensor, " P"], *, beta: float = 0.1) -> Float[Tensor, " P"]:
    """(d - 1 / (2 b))^2: the margin has a target, so that a sure pair does not run away.

    Args:
        d: margin; the paper's is of sums, and means (TRL) do not let long answers decide.
        beta: half the inverse of the target.

    Source: arXiv:2310.12036, equation 17.
    """
    return (d - 1 / (2 * beta)).square()


def simpo(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
) -> Float[Tensor, " P"]:
    """-ln sigma(b (chosen - rejected) - g), of means and without a reference.

    Source: SimPO, arXiv:2405.14734, equation 6.
    """
    return -F.logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(
    chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], *, weight: float = 0.1
) -> Float[Tensor, " P"]:
    """-chosen - l ln sigma(log odds of chosen - of rejected), of means and without a reference.

    Source: ORPO, arXiv:2403.07691, equations 4 to 7.
    """
    apart = _log_odds(chosen) - _log_odds(rejected)
    return -chosen - weight * F.logsigmoid(apart)


def _log_odds(logp: Tensor) -> Tensor:
    sure = logp.clamp(max=-1e-6)  # a probability of 1 has no odds
    return sure - torch.log(-torch.expm1(sure))
