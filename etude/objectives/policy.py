"""Policy losses that clip the ratio of each token: PPO, and all that differ from it elsewhere.

GRPO, Dr. GRPO, DAPO, RLOO and REINFORCE++ are this loss under other advantages and aggregates. Of
whole answers: `policy_sequence`; whose weight is clipped instead: `policy_weight`.
"""

import torch

from etude.typing import Bool, Float, Tensor

# e^20: far outside any clip, and finite, so a runaway token cannot turn a zero gradient into NaN
LOG_RATIO_MAX = 20.0


def ppo(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Clip the probability ratio: a token stops counting once it moved far enough its way.

    GRPO is this with `advantage.group` and `sequence` weights; GLM-4.5 takes `token` weights for
    code, no KL term, and may clip higher than it clips low.

    Args:
        logp: log-probability of each sampled token now, in nats; the only input that carries
            gradient.
        logp_old: the same under the weights at the start of this update.
        advantage: reward relative to the rollout's group, equal on all tokens of one rollout.
        mask: true on tokens the policy wrote; prompt, padding and tool output are false.
        low, high: the ratio is clipped to [1 - low, 1 + high].
        dual: where the advantage is negative the loss is at most -dual * advantage, so a token that
            grew likely by more than that stops counting too; None = no such bound.

    Returns:
        The loss of each token, zero where masked, and per-token values to log: the ratio, whether
        the lower, upper or dual clip silenced the token, and two estimates of KL(now||old), k1 (may
        be negative) and k3 (never).

    Source: PPO, arXiv:1707.06347, equation 7; GRPO, arXiv:2402.03300, equation 3; clip-higher:
    DAPO, arXiv:2503.14476, section 3.1; without KL: GLM-4.5, arXiv:2508.06471, section 3.2; dual
    clip: arXiv:1912.09729, equation 5 (3 there).
    """
    ratio, seen = moved(logp, logp_old, mask)
    kept = ratio.clamp(1 - low, 1 + high)
    loss = torch.where(mask, -torch.minimum(ratio * advantage, kept * advantage), 0.0)
    now = seen["ratio"]
    seen |= {
        "clipped_low": mask & (advantage < 0) & (now < 1 - low),
        "clipped_high": mask & (advantage > 0) & (now > 1 + high),
    }
    if dual is not None:
        bound = torch.where(advantage < 0, -dual * advantage, torch.inf)
        seen["clipped_dual"] = mask & (loss.detach() > bound)
        loss = torch.minimum(loss, bound)
    return loss, seen


def moved(
    logp: Float[Tensor, "B T"], logp_old: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Return the ratio exp(logp - logp_old), 1 where masked, and what every policy loss logs."""
    drift = torch.where(mask, logp - logp_old, 0.0)  # where before exp: padding may hold -inf
    ratio = drift.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).exp()
    now, step = ratio.detach(), drift.detach()
    seen = {
        "ratio": now,
        "ratio_min": now,
        "ratio_max": now,
        "k1": step,
        "k3": torch.expm1(-step.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX)) + step,
    }
    return ratio, seen
