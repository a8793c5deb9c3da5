"""From rewards to advantages: what an answer, or a token, was worth beside what was expected.

The estimators of a group return exact zeros where its rewards are equal. With a critic: see
`objectives.value`.
"""

from collections.abc import Mapping

import torch

from etude.typing import Bool, Float, Int, Tensor


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
    centred = _centred(reward)
    return centred / (reward.std(dim=1, keepdim=True, unbiased=unbiased) + eps) if std else centred


def group_mean_batch_std(
    reward: Float[Tensor, "P O"], *, unbiased: bool = True, eps: float = 1e-4
) -> Float[Tensor, "P O"]:
    """Reward minus the group's mean, over the deviation of all rewards of the batch.

    Args, Returns, Raises: as in `group`.

    Source: Lite PPO, arXiv:2508.08221; TRL's `scale_rewards="batch"`.
    """
    return _centred(reward) / (reward.std(unbiased=unbiased) + eps)


def leave_one_out(
    reward: Float[Tensor, "P O"], *, std: bool = False, unbiased: bool = True, eps: float = 1e-4
) -> Float[Tensor, "P O"]:
    """Reward minus the mean of the group's others: O / (O - 1) times that minus the group's mean.

    Args:
        reward: O rollouts for each of P prompts.
        std: divide by the group's standard deviation too (Nemotron 3).
        unbiased, eps: of that deviation.

    Returns, Raises: as in `group`.

    Source: RLOO, arXiv:2402.14740, section 3.3.
    """
    rollouts = reward.shape[1]
    return group(reward, std=std, unbiased=unbiased, eps=eps) * (rollouts / max(rollouts - 1, 1))


def returns_to_go(
    reward: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, gamma: float = 1.0
) -> Float[Tensor, "B T"]:
    """Sum of a token's reward and of all that follow, discounted by gamma per written token.

    Zero where masked. Whitened over all tokens of the batch (`value.whiten`) it is the advantage of
    REINFORCE++, arXiv:2501.03262, equations 4 to 6.
    """
    result, running = torch.zeros_like(reward), torch.zeros_like(reward[:, 0])
    for t in range(reward.shape[1] - 1, -1, -1):
        running = torch.where(mask[:, t], reward[:, t] + gamma * running, running)
        result[:, t] = torch.where(mask[:, t], running, 0.0)
    return result


def reinforce_pp_baseline(
    reward: Float[Tensor, "P O"], lengths: Int[Tensor, "P O"], *, unbiased: bool = True
) -> Float[Tensor, "P O"]:
    """Reward minus the group's mean, whitened over all tokens: an answer counts once per token.

    Args:
        reward: O rollouts for each of P prompts.
        lengths: trained tokens of each.
        unbiased: of the standard deviation.

    Returns, Raises: as in `group`, but a group of equal rewards gets what the mean over all tokens
    is off zero.

    Source: REINFORCE++ with baseline, arXiv:2501.03262; ProRL v2; ScaleRL, arXiv:2510.13786.
    """
    centred, tokens = _centred(reward), lengths.sum().clamp(min=1)
    off = centred - (lengths * centred).sum() / tokens
    variance = (lengths * off.square()).sum() / (tokens - int(unbiased)).clamp(min=1)
    flat = ~mixed(reward).any()
    return torch.where(flat, 0.0, off / torch.where(flat, 1.0, variance.sqrt().clamp(min=1e-8)))


def decoupled(
    parts: Mapping[str, Float[Tensor, "P O"]],
    weights: Mapping[str, float],
    *,
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Float[Tensor, "P O"]:
    """Normalise each named reward in its group, add them by weight, then scale over the batch.

    Adding first would let the reward with the widest spread drown the others.

    Args:
        parts: reward by name, each O rollouts for each of P prompts.
        weights: by name; a part that is not named weighs 1.
        unbiased, eps: of the standard deviations.

    Returns:
        Advantages.

    Raises:
        ValueError: no parts, a weight without its part, or a group of one rollout.

    Source: GDPO, arXiv:2601.05242.
    """
    unknown = sorted(weights.keys() - parts.keys())
    if unknown or not parts:
        found, known = ", ".join(unknown), ", ".join(sorted(parts)) or "none"
        raise ValueError(f"advantage.decoupled: no reward part {found}; known: {known}")
    terms = [
        weights.get(name, 1.0) * group(part, unbiased=unbiased, eps=eps)
        for name, part in sorted(parts.items())
    ]
    total = torch.stack(terms).sum(dim=0)  # of mean 0, since every group's is
    return total / (total.std(unbiased=unbiased) + eps)


def mixed(reward: Float[Tensor, "P O"]) -> Bool[Tensor, " P"]:
    """Whether a prompt's rollouts differ in reward; only then does the group teach something."""
    return reward.amax(dim=1) > reward.amin(dim=1)


def _centred(reward: Float[Tensor, "P O"]) -> Float[Tensor, "P O"]:
    if reward.shape[1] < 2:
        raise ValueError(
            "advantage.group: a prompt needs at least 2 rollouts: their mean is its baseline"
        )
    centred = reward - reward.mean(dim=1, keepdim=True)
    # the mean of equal floats can be off in its last bit
    return centred.masked_fill(~mixed(reward)[:, None], 0.0)
