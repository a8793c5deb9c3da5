"""Policy losses of whole answers: GSPO, its per-token form, and Kimi K2's mirror descent.

Rows are one answer each. A loss of an answer stands on all its tokens, so that under `sequence`
weights, which average over them, it counts once.
"""

from typing import Literal

import torch

from etude.objectives.policy import LOG_RATIO_MAX, moved
from etude.typing import Bool, Float, Tensor


def gspo(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    low: float = 3e-4,
    high: float = 4e-4,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Clip an answer by the geometric mean of its tokens' ratios.

    Args:
        logp: log-probability of each sampled token now, in nats; the only input that carries
            gradient.
        logp_old: the same under the weights at the start of this update.
        advantage: equal on all tokens of one answer.
        mask: true on tokens the policy wrote.
        low, high: the mean is clipped to [1 - low, 1 + high]. It stays near 1, so these are small,
            and shares of clipped tokens near 0.15 are usual.

    Returns:
        The loss of each token, zero where masked, and per-token values to log; `ratio` is the
        answer's.

    Source: GSPO, arXiv:2507.18071, equations 5 to 7; the widths: section 5.1.
    """
    drift = _mean(torch.where(mask, logp - logp_old, 0.0), mask)
    ratio = drift.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).exp().expand(mask.shape)
    return _clipped(ratio, logp, logp_old, advantage, mask, low, high)


def gspo_token(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    low: float = 3e-4,
    high: float = 4e-4,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """GSPO by token: s * exp(logp - sg(logp)), s without gradient; advantages may differ.

    With one advantage for an answer it equals `gspo` in value and gradient.

    Args, Returns: as in `gspo`, except that `advantage` is each token's own.

    Source: GSPO, arXiv:2507.18071, section 4.3, equations 13 and 14.
    """
    drift = _mean(torch.where(mask, logp.detach() - logp_old, 0.0), mask)
    own = torch.where(mask, logp - logp.detach(), 0.0).exp()
    ratio = drift.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).exp() * own
    return _clipped(ratio, logp, logp_old, advantage, mask, low, high)


def mirror_descent(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    tau: float = 0.01,
    scale: Literal["policy_gradient", "squared"] = "policy_gradient",
    by_length: bool = False,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Make tau times an answer's log-ratio equal to its advantage; nothing is clipped.

    With d = sum(logp - logp_old) and A the reward minus the group's mean: `squared` is (A - tau
    d)^2; `policy_gradient` is -A sum(logp) + tau / 2 d^2, whose gradient is that over 2 tau and at
    d = 0 that of centred REINFORCE.

    Args:
        logp, logp_old, advantage, mask: as in `gspo`.
        tau: weight of the log-ratio.
        scale: which of the two forms.
        by_length: divide an answer's loss by its tokens.

    Returns:
        The loss of each answer on all its tokens, zero where masked, and per-token values to log.

    Source: Kimi K2, arXiv:2507.20534, section 3.2.3, after Kimi k1.5, arXiv:2501.12599, equation 3.
    """
    _, seen = moved(logp, logp_old, mask)
    drift = torch.where(mask, logp - logp_old, 0.0).sum(1, keepdim=True)
    reward = _mean(torch.where(mask, advantage, 0.0), mask)
    if scale == "squared":
        loss = (reward - tau * drift).square()
    else:
        total = torch.where(mask, logp, 0.0).sum(1, keepdim=True)
        loss = -reward * total + tau / 2 * drift.square()
    if by_length:
        loss = loss / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, loss.expand(mask.shape), 0.0), seen


def _clipped(
    ratio: Tensor,
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    low: float,
    high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's term of a ratio that is the same on all tokens of an answer."""
    kept = ratio.clamp(1 - low, 1 + high)
    loss = torch.where(mask, -torch.minimum(ratio * advantage, kept * advantage), 0.0)
    _, seen = moved(logp, logp_old, mask)
    now = ratio.detach()
    seen |= {
        "ratio": now,
        "ratio_min": now,
        "ratio_max": now,
        "clipped_low": mask & (advantage < 0) & (now < 1 - low),
        "clipped_high": mask & (advantage > 0) & (now > 1 + high),
    }
    return loss, seen


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its counted tokens [B, 1]; 0 in a row without one."""
    return x.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
