"""Estimates of KL(policy || reference) from sampled tokens, and what each one's gradient is.

With x = ref - logp of a token the policy sampled:

| form | value | expected value | expected gradient |
|-|-|-|-|
| `k1` | -x | KL(policy || reference) | zero: it teaches nothing |
| `k2` | x^2 / 2 | close to it where both are close | of KL(policy || reference) |
| `k3` | e^x - 1 - x | KL(policy || reference), never negative | of KL(reference || policy) |
| `k3_unbiased` | k3, times a ratio of value 1 | as k3 | of KL(policy || reference) |
"""

from typing import Literal

import torch

from etude.typing import Bool, Float, Tensor

Form = Literal["k1", "k2", "k3", "k3_unbiased"]
GAP_MAX = 20.0  # nats: where e^x would run away
K3_MAX = 10.0


def estimate(
    logp: Float[Tensor, "B T"],
    ref: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    form: Form = "k3_unbiased",
) -> Float[Tensor, "B T"]:
    """Estimate the divergence from the reference at each token.

    Args:
        logp: log-probability of each sampled token under the policy, in nats; carries gradient.
        ref: the same under the frozen reference.
        mask: true on tokens the policy wrote.
        form: see the table above. `k3_unbiased` is k3 times exp(logp - sg(logp)): its gradient,
            (1 - e^x) + k3 = -x, is that of k2.

    Returns:
        One value per token, zero where masked. ref - logp is cut at 20 nats and k3 at 10, where the
        gradient of either is zero.

    Source: Schulman, "Approximating KL divergence" (k1 to k3); the ratio: DeepSeek-V3.2,
    arXiv:2512.02556, section 3.1 (unbiased KL estimate).
    """
    gap = torch.where(mask, ref - logp, 0.0).clamp(-GAP_MAX, GAP_MAX)
    if form == "k1":
        return -gap
    if form == "k2":
        return gap.square() / 2
    k3 = (torch.expm1(gap) - gap).clamp(max=K3_MAX)
    if form == "k3":
        return k3
    k2 = gap.square() / 2  # its gradient, since that of a k3 cut at 10 would turn its sign
    return k3.detach() + k2 - k2.detach()
