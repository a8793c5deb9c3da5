"""Keeping experts evenly loaded: two auxiliary losses and the bias that needs none.

Both losses divide by the active experts A, so a balanced router gives exactly 1 whatever A is; code
that follows Switch gives A instead.
"""

import torch

from etude.typing import Bool, Float, Int, Tensor


def load(
    chosen: Int[Tensor, "B T A"], valid: Bool[Tensor, "B T"], *, experts: int
) -> Float[Tensor, " E"]:
    """Tokens sent to each expert, padding left out. float32 is exact up to 2^24 tokens a call."""
    count = torch.zeros(experts, dtype=torch.float32, device=chosen.device)
    sent = valid[..., None].expand_as(chosen).flatten().float()
    return count.index_add_(0, chosen.flatten(), sent)


def auxiliary(
    scores: Float[Tensor, "B T E"],
    valid: Bool[Tensor, "B T"],
    counts: Float[Tensor, " E"],
    *,
    active: int,
) -> Float[Tensor, ""]:
    """Balance over a batch: these tokens' share of `E / A sum_e f_e P_e`, 1 when all is even.

    f_e are the choices of expert e per token and P_e is its mean score, both over the whole batch.
    f carries no gradient and P is a mean, so the shares of any cut of the batch add up to it.

    Args:
        scores: router scores, sigmoid or softmax; normalised over the experts here.
        valid: false on padding.
        counts: tokens per expert over the **global** batch: balance inside a micro-batch would
            forbid specialisation. Carries no gradient.
        active: experts each token takes (A).

    Source: Switch Transformer, arXiv:2101.03961, equation 4 (there E times the sum, with A = 1);
    MiniMax-Text-01, arXiv:2501.08313 (there 1 / E times the sum). See `weight_of`.
    """
    counts = counts.detach()
    tokens = (counts.sum() / active).clamp(min=1.0)
    share = counts * scores.shape[-1] / (active * tokens)
    mean = (_normal(scores) * valid[..., None]).sum(dim=(0, 1)) / tokens
    return (share * mean).sum()


def weight_of(form: str, *, experts: int, active: int) -> float:
    """What a unit of weight in another form of the loss is worth in that of `auxiliary`.

    Args:
        form: `even` is that of `auxiliary`; `mean` is 1 / E sum_e f_e P_e, `sum` E sum_e f_e P_e.
        experts: E.
        active: A.
    """
    return {"even": 1.0, "mean": active / experts**2, "sum": float(active)}[form]


def sequence(
    scores: Float[Tensor, "B T E"], chosen: Int[Tensor, "B T A"], valid: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Balance within each row, 1 when even; zero for a row without tokens.

    Args:
        scores: router scores before any selection bias; carries gradient.
        chosen: the experts taken.
        valid: false on padding.

    Returns:
        One value per row. The trainer sums, divides by the number of rows of the whole step and
        multiplies by the weight (1e-4 in GLM-4.5, section 2.4).

    Source: DeepSeek-V3, arXiv:2412.19437, section 2.1.2, equations 17 to 20.
    """
    experts, active = scores.shape[-1], chosen.shape[-1]
    here = valid.float()
    tokens = here.sum(dim=1, keepdim=True).clamp(min=1.0)  # [B, 1]
    taken = here[..., None].expand(chosen.shape).flatten(1)
    counts = torch.zeros(len(scores), experts, device=scores.device)
    counts = counts.scatter_add_(1, chosen.flatten(1), taken)
    share = counts * experts / (active * tokens)  # f: [B, E], no gradient
    mean = (_normal(scores) * here[..., None]).sum(dim=1) / tokens  # P: [B, E]
    return (share * mean).sum(dim=1)


def bias_step(
    bias: Float[Tensor, " E"], counts: Float[Tensor, " E"], *, rate: float
) -> Float[Tensor, " E"]:
    """Raise the bias of experts below the mean load, lower it above: `b + rate * sign(mean - c)`.

    Args:
        bias: float32, without gradient or decay; it picks experts and never weighs them.
        counts: tokens per expert over the whole optimizer step and all ranks.
        rate: 1e-3 for the first 15T tokens of GLM-4.5, then 0 (section 2.4).

    Source: Loss-free balancing, arXiv:2408.15664, algorithm 1.
    """
    return bias + rate * torch.sign(counts.mean() - counts)


def violation(counts: Float[Tensor, " E"]) -> Float[Tensor, ""]:
    """Load of the fullest expert relative to the mean; 1 = balanced, E / A at worst."""
    return counts.max() / counts.mean().clamp(min=1e-9)


def _normal(scores: Tensor) -> Tensor:
    return scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
