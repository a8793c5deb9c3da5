"""From rewards to advantages."""

from etude.typing import Bool, Float, Tensor


def group(
    reward: Float[Tensor, "P O"], *, std: bool = True, unbiased: bool = True, eps: float = 1e-6
) -> Float[Tensor, "P O"]:
    """Reward relative to the other rollouts of the same prompt.

    Args:
        reward: O rollouts for each of P prompts.
        std: divide by the group's standard deviation. Without it a group counts by how much its
            rewards differ: the agentic objective of GLM-4.5 (section 3.3) and Dr. GRPO.
        unbiased: standard deviation with O - 1 in the denominator, as TRL and verl have it.
        eps: added to the standard deviation: our choice is that of verl and slime; 1e-4 in TRL.

    Returns:
        Advantages, exactly zero in a group whose rewards are equal.

    Raises:
        ValueError: a group of one rollout has no baseline.

    Source: DeepSeekMath, arXiv:2402.03300, section 4.1.2; GLM-4.5, arXiv:2508.06471, sections 3.2
    and 3.3.
    """
    if reward.shape[1] < 2:
        raise ValueError(
            "advantage.group: a prompt needs at least 2 rollouts: their mean is its baseline"
        )
    centred = reward - reward.mean(dim=1, keepdim=True)
    # the mean of equal floats can be off in its last bit
    centred = centred.masked_fill(~mixed(reward)[:, None], 0.0)
    return centred / (reward.std(dim=1, keepdim=True, unbiased=unbiased) + eps) if std else centred


def mixed(reward: Float[Tensor, "P O"]) -> Bool[Tensor, " P"]:
    """Whether a prompt's rollouts differ in reward; only then does the group teach something."""
    return reward.amax(dim=1) > reward.amin(dim=1)
