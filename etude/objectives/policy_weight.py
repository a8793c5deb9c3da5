"""Policy losses whose weight is bounded instead of the token: CISPO, and Kimi K2.5's window."""

import torch

from etude.objectives.policy import moved
from etude.typing import Bool, Float, Tensor


def cispo(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    weight_min: float = 0.0,
    weight_max: float = 5.0,
    drop_low: float | None = None,
    drop_high: float | None = None,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Clip the importance weight: bound how much a token counts, never whether it counts.

    Args:
        logp: log-probability of each sampled token now, in nats; the only input that carries
            gradient.
        logp_old: the same under the weights at the start of this update (the sampler's own value
            only where the two agree).
        advantage: reward relative to the rollout's group, equal on all tokens of one rollout.
        mask: true on tokens the policy wrote; prompt, padding and tool output are false.
        weight_min, weight_max: absolute bounds of the weight (the paper's 1 - eps_low and 1 +
            eps_high; its lower side is open).
        drop_low, drop_high: the unified form's mask: drop a token whose advantage is negative and
            ratio below 1 - drop_low, or positive and above 1 + drop_high, which is PPO's pattern of
            zeros. None = keep all.

    Returns:
        The loss of each token, zero where masked, and per-token values to log.

    Raises:
        ValueError: `weight_max` is not above `weight_min`.

    Source: MiniMax-M1, arXiv:2506.13585, section 3.1 (the CISPO objective, its clipped weight, and
    the unified formulation).
    """
    if weight_max <= weight_min:
        raise ValueError(
            f"cispo: weight_max {weight_max} must exceed weight_min {weight_min};"
            " both bound the ratio itself, e.g. 0 and 5"
        )
    _, seen = moved(logp, logp_old, mask)
    ratio = seen["ratio"]
    weight = ratio.clamp(weight_min, weight_max)
    low = torch.zeros_like(mask) if drop_low is None else ratio < 1 - drop_low
    high = torch.zeros_like(mask) if drop_high is None else ratio > 1 + drop_high
    dropped = ((advantage < 0) & low) | ((advantage > 0) & high)
    loss = torch.where(mask & ~dropped, -weight * advantage * logp, 0.0)
    seen |= {
        "clipped_low": mask & (ratio < weight_min),
        "clipped_high": mask & (ratio > weight_max),
        "dropped": mask & dropped,
    }
    return loss, seen


def masked_log_ratio(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    ratio_min: float = 0.8,
    ratio_max: float = 1.28,
    tau: float = 1e-3,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Count a token only inside a window of ratios, whatever its advantage's sign, and pull back.

    The loss is -clip(r) A + tau (ln r)^2: outside of the window only the second term has gradient.

    Args:
        logp, logp_old, advantage, mask: as in `cispo`.
        ratio_min, ratio_max: the window; its logs are the report's alpha and beta.
        tau: weight of the squared log-ratio.

    Returns:
        The loss of each token, zero where masked, and per-token values to log.

    Source: Kimi K2.5's report, the section on its RL objective, which publishes none of the three
    values.
    """
    ratio, seen = moved(logp, logp_old, mask)
    kept = ratio.clamp(ratio_min, ratio_max)
    drift = torch.where(mask, logp - logp_old, 0.0)
    loss = torch.where(mask, -kept * advantage + tau * drift.square(), 0.0)
    now = seen["ratio"]
    seen |= {"clipped_low": mask & (now < ratio_min), "clipped_high": mask & (now > ratio_max)}
    return loss, seen
