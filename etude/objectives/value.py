"""PPO's value head: advantages from a critic's values, its clipped loss, and whitening."""

import torch

from etude.typing import Bool, Float, Tensor


def gae(
    reward: Float[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    last: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation over the tokens the policy wrote.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where t + 1 is the
    policy's next token: observations between its turns carry V and A through unchanged.

    Args:
        reward: of each token; that of the whole answer stands on its last one.
        value: the critic's value before each token.
        mask: true on tokens the policy wrote.
        gamma: discount per written token.
        lam: 1 sums all that follows, 0 looks one token ahead.
        last: value after the last token, for answers that were cut; None = 0.

    Returns:
        Advantages and returns (advantage + value), zero where masked, without gradient.

    Source: GAE, arXiv:1506.02438, equation 16; PPO, arXiv:1707.06347, equation 11.
    """
    reward, value = reward.detach(), value.detach()
    advantage = torch.zeros_like(value)
    running = torch.zeros_like(value[:, 0])
    ahead = torch.zeros_like(running) if last is None else last.detach().to(value.dtype)
    for t in range(value.shape[1] - 1, -1, -1):
        here = mask[:, t]
        delta = reward[:, t] + gamma * ahead - value[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        ahead = torch.where(here, value[:, t], ahead)
        advantage[:, t] = torch.where(here, running, 0.0)
    return advantage, torch.where(mask, advantage + value, 0.0)


def value_loss(
    value: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip: float = 0.2,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Half the larger of two squared errors: of the value, and of the value kept near the old one.

    Args:
        value: the critic's value now; the only input that carries gradient.
        old: its value when the round was scored.
        returns: what it should have said.
        mask: true on tokens the policy wrote.
        clip: how far the kept value may be from `old`.

    Returns:
        The loss of each token, zero where masked, and where the kept one was larger, which has no
        gradient.

    Source: the value clip of PPO's first implementation (openai/baselines, ppo2); 0.2 in slime, 0.5
    in verl and OpenRLHF.
    """
    near = old + (value - old).clamp(-clip, clip)
    plain, kept = (value - returns).square(), (near - returns).square()
    loss = torch.where(mask, 0.5 * torch.maximum(plain, kept), 0.0)
    return loss, {"clipped": mask & (kept > plain).detach()}


def whiten(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, unbiased: bool = True
) -> Float[Tensor, "B T"]:
    """Shift and scale to mean 0 and deviation 1 over the tokens of all rows.

    Args:
        x: one value per token.
        mask: true on tokens that count.
        unbiased: deviation with n - 1 below.

    Returns:
        The same shape, zero where masked; all zero where the values are equal.
    """
    kept = torch.where(mask, x, 0.0)
    count = mask.sum()
    mean = kept.sum() / count.clamp(min=1)
    centred = torch.where(mask, x - mean, 0.0)
    variance = centred.square().sum() / (count - int(unbiased)).clamp(min=1)
    flat = torch.where(mask, x, torch.inf).amin() >= torch.where(mask, x, -torch.inf).amax()
    scale = torch.where(flat, 1.0, variance.sqrt().clamp(min=1e-8))
    return torch.where(flat, 0.0, centred / scale)
