"""Where the sampler's probabilities are not the trainer's: weights against the bias, and figures.

w = exp(old - roll) compares the trainer's probability of a token at the start of the update with
the one that the sampler had when it drew it. It never carries gradient; multiply a token's policy
loss by what a function here returns. Sequence forms read the rows of one answer each.
"""

import torch

from etude.typing import Bool, Float, Tensor

LOG_MAX = 20.0  # nats; e^20 is far outside any bound, and finite


def tis_token(
    old: Float[Tensor, "B T"], roll: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, cap: float
) -> Float[Tensor, "B T"]:
    """min(w, cap): truncated importance sampling, no token is dropped.

    Args:
        old: trainer's log-probability at the start of the update, in nats.
        roll: the sampler's.
        mask: true on tokens the policy wrote.
        cap: largest weight.

    Returns:
        Weights without gradient, zero where masked.

    Source: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training".
    """
    return torch.where(mask, _gap(old, roll, mask).exp().clamp(max=cap), 0.0)


def mask_token(
    old: Float[Tensor, "B T"],
    roll: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "B T"]:
    """Keep w where low <= w <= high, else 0 (IcePop, Nemotron 3's masked importance sampling)."""
    w = _gap(old, roll, mask).exp()
    return torch.where(mask & (w >= low) & (w <= high), w, 0.0)


def tis_sequence(
    old: Float[Tensor, "B T"], roll: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, cap: float
) -> Float[Tensor, "B T"]:
    """min(product of an answer's w, cap), the same on all its tokens."""
    return mask * _product(old, roll, mask).clamp(max=cap)


def mask_sequence(
    old: Float[Tensor, "B T"], roll: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, cap: float
) -> Float[Tensor, "B T"]:
    """The product of an answer's w where it is at most `cap`; the answer is dropped elsewhere."""
    product = _product(old, roll, mask)
    return mask * torch.where(product <= cap, product, 0.0)


def mask_geometric(
    old: Float[Tensor, "B T"],
    roll: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "B T"]:
    """Each token's w where the geometric mean of its answer lies in [low, high], else 0."""
    gap = _gap(old, roll, mask)
    mean = (gap.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()
    return torch.where(mask & (mean >= low) & (mean <= high), gap.exp(), 0.0)


def opsm(
    logp: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    delta: float,
) -> Float[Tensor, "B T"]:
    """0 on answers of negative advantage with mean(old - logp) > delta, 1 on all others.

    Source: DeepSeek-V3.2, arXiv:2512.02556, section 3.1 (off-policy sequence masking).
    """
    drift = _gap(old, logp.detach(), mask)
    far = drift.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1) > delta
    return torch.where(mask & ~(far & (advantage < 0)), 1.0, 0.0)


def figures(
    old: Float[Tensor, "B T"],
    roll: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    low: float = 0.5,
    high: float = 2.0,
) -> dict[str, float]:
    """How far sampler and trainer are apart, over the tokens of all rows.

    Args:
        old, roll, mask: as in `tis_token`.
        low, high: what counts as outside.

    Returns:
        `mismatch_k1` and `mismatch_k3` estimate KL(sampler||trainer); `mismatch_weight` is the mean
        w and `mismatch_spread` the mean exp|old - roll|; `mismatch_effective` is the effective
        share of samples, (sum w)^2 / (n sum w^2); `mismatch_outside` the share of w outside [low,
        high]; `mismatch_correlation` that of the probabilities, 1 where all are equal. Without a
        token, none.

    Source: the correlation: MiniMax-M1, arXiv:2506.13585, section 3.2, where 0.9 stood for trouble.
    """
    if not bool(mask.any()):
        return {}
    gap = _gap(old, roll, mask)[mask].double()
    w = gap.exp()
    mine, theirs = old[mask].double().exp(), roll[mask].double().exp()
    pair = torch.stack([mine - mine.mean(), theirs - theirs.mean()])
    norms = pair.square().sum(1).sqrt().prod()
    correlation = (pair[0] * pair[1]).sum() / norms if float(norms) else None
    found = {
        "k1": -gap.mean(),
        "k3": (torch.expm1(gap) - gap).mean(),
        "weight": w.mean(),
        "spread": gap.abs().exp().mean(),
        "effective": w.sum().square() / (len(w) * w.square().sum()),
        "outside": ((w < low) | (w > high)).double().mean(),
        "correlation": 1.0 if correlation is None else correlation,
    }
    return {f"mismatch_{name}": float(value) for name, value in found.items()}


def _gap(old: Tensor, roll: Tensor, mask: Tensor) -> Tensor:
    gap = torch.where(mask, old.detach() - roll, 0.0)  # where first: padding may hold -inf
    return gap.clamp(-LOG_MAX, LOG_MAX)


def _product(old: Tensor, roll: Tensor, mask: Tensor) -> Tensor:
    return _gap(old, roll, mask).sum(1, keepdim=True).clamp(-LOG_MAX, LOG_MAX).exp()
