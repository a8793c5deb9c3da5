"""Routing tokens to experts: scores, the choice, and the weights of the chosen.

Everything is float32. The selection bias joins the choice and never the weights (arXiv:2508.06471,
section 2.4; the group limit is that of DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F

from etude.ops.wide import at_least_float32
from etude.typing import Float, Int, Tensor


def score(
    x: Float[Tensor, "N D"], weight: Float[Tensor, "E D"], *, kind: Literal["sigmoid", "softmax"]
) -> Float[Tensor, "N E"]:
    """Affinity of each token to each expert, in float32 at least.

    At bf16 the sigmoid ties and top-k then picks by index.
    """
    wide = at_least_float32(x)
    z = F.linear(x.to(wide), weight.to(wide))
    return z.sigmoid() if kind == "sigmoid" else z.softmax(-1)


def choose(
    scores: Float[Tensor, "N E"],
    bias: Float[Tensor, " E"] | None,
    *,
    active: int,
    groups: int = 1,
    group_topk: int = 1,
) -> Int[Tensor, "N A"]:
    """Pick the `active` experts of each token; no gradient passes.

    Args:
        scores: affinities without bias.
        bias: added for the choice only, so that a constant on all experts changes nothing.
        active: experts per token.
        groups: the experts stand in this many groups of equal size.
        group_topk: only experts of this many groups are eligible: those with the largest sum of two
            best scores.

    Returns:
        Expert numbers, in no particular order.
    """
    ranked = scores.detach() if bias is None else scores.detach() + bias
    if group_topk < groups:
        grouped = ranked.unflatten(-1, (groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(group_topk, dim=-1, sorted=False).indices
        barred = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
        ranked = grouped.masked_fill(barred.unsqueeze(-1), -math.inf).flatten(-2)
    return ranked.topk(active, dim=-1, sorted=False).indices


def weigh(
    scores: Float[Tensor, "N E"], chosen: Int[Tensor, "N A"], *, normalize: bool, scale: float
) -> Float[Tensor, "N A"]:
    """Weights of the chosen experts: their unbiased scores, normalised to sum 1, then scaled."""
    weights = scores.gather(-1, chosen)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights if scale == 1.0 else weights * scale
