"""From one loss per token to one number: the weights by which a whole optimizer step is averaged.

The average is sum(weights * loss) / denominator with **both** over all micro-batches and ranks of
the step. The trainer computes the denominator once, before the first micro-batch; averaging the
means of micro-batches instead would weigh their tokens by how the batch happened to be cut.

| aggregate | value | who |
|-|-|-|
| `token` | sum / tokens | DAPO, CISPO, Nemotron 3 |
| `sequence` | mean over sequences of the mean over their own tokens | GRPO, GSPO |
| `sequence_sum` | mean over sequences of the sum over their tokens | REINFORCE, Kimi K2 |
| `constant` | sum / (sequences * C), C a fixed length | Dr. GRPO |
| `batch_token_prompt` | mean over problems of (sum / tokens of their answers) | |
| `token_and_sequence` | half of `token`, half of `sequence` | MiniMax-M1's long windows |
"""

from dataclasses import dataclass
from typing import Literal

import torch

from etude.typing import Bool, Float, Int, Tensor

Aggregate = Literal[
    "token", "sequence", "sequence_sum", "constant", "batch_token_prompt", "token_and_sequence"
]


@dataclass(frozen=True, slots=True)
class Step:
    """What a weight may have to know of the whole step, over all micro-batches and ranks.

    Args:
        tokens: that are trained.
        sequences: that have one.
    """

    tokens: int
    sequences: int


def weights(
    mask: Bool[Tensor, "B T"],
    aggregate: Aggregate = "token",
    *,
    segments: Int[Tensor, "B T"] | None = None,
    group_tokens: Float[Tensor, " B"] | None = None,
    step: Step | None = None,
) -> Float[Tensor, "B T"]:
    """How much each token counts.

    Args:
        mask: true on tokens that are trained.
        aggregate: see the table above. `token_and_sequence` is MiniMax-M1's mixture of a
            sample-level loss with token-level normalisation; its exact form is not published, and
            one half each is our choice.
        segments: number of each token's sequence in its row; None = a row is one sequence. For
            `token` and `sequence` only.
        group_tokens: trained tokens of all answers to the row's problem in the step, for
            `batch_token_prompt`.
        step: totals of the step, for `token_and_sequence`.

    Returns:
        Weights, zero where masked. A sequence without a trained token adds nothing.

    Raises:
        ValueError: the aggregate needs what was not given, or rows of one sequence each.

    Source: DeepSeekMath, arXiv:2402.03300, equation 3 (`sequence`); DAPO, arXiv:2503.14476, section
    3.3 (`token`); Dr. GRPO, arXiv:2503.20783, section 3.2 (`constant`); MiniMax-M1,
    arXiv:2506.13585, section 4.2 (the mixture); over packed conversations: Nemotron 3 Super,
    arXiv:2604.12374, whose fine-tuning takes `token` first and `sequence` then.
    """
    counted = mask.float()
    if aggregate == "token":
        return counted
    if aggregate == "sequence":
        return _per_sequence(counted, segments)
    if segments is not None:
        raise ValueError(f"aggregate {aggregate}: rows hold one sequence each")
    if aggregate == "batch_token_prompt":
        if group_tokens is None:
            raise ValueError("aggregate batch_token_prompt: group_tokens are missing")
        return counted / group_tokens.clamp(min=1.0)[:, None]
    if aggregate == "token_and_sequence":
        if step is None:
            raise ValueError("aggregate token_and_sequence: the step's totals are missing")
        both = counted / max(step.tokens, 1) + _per_sequence(counted, None) / max(step.sequences, 1)
        return 0.5 * both
    return counted


def denominator(
    mask: Bool[Tensor, "B T"],
    aggregate: Aggregate = "token",
    *,
    rows: Bool[Tensor, " B"] | None = None,
    constant: int = 1,
    segments: Int[Tensor, "B T"] | None = None,
    group_tokens: Float[Tensor, " B"] | None = None,
    step: Step | None = None,
) -> float:
    """This batch's part of what the weighted sum of the step is divided by.

    Args:
        mask: true on tokens that are trained.
        aggregate: as in `weights`.
        rows: true on rows that count as a sequence of `sequence_sum` and `constant` even if all
            their tokens are masked; None = those with a trained token.
        constant: C, tokens that each sequence counts as under `constant`.
        segments, group_tokens, step: as in `weights`.
    """
    if aggregate in ("sequence_sum", "constant"):
        sequences = float((mask.any(dim=1) if rows is None else rows).sum())
        return sequences * (constant if aggregate == "constant" else 1)
    known = {"segments": segments, "group_tokens": group_tokens, "step": step}
    return float(weights(mask, aggregate, **known).sum())


def _per_sequence(
    counted: Float[Tensor, "B T"], segments: Int[Tensor, "B T"] | None
) -> Float[Tensor, "B T"]:
    """One over the trained tokens of each token's own sequence, zero where masked."""
    if segments is None:
        return counted / torch.clamp(counted.sum(dim=1, keepdim=True), min=1.0)
    rows, width = counted.shape  # a row has at most as many sequences as tokens
    sizes = torch.zeros(rows, width + 1, device=counted.device).scatter_add_(1, segments, counted)
    return counted / torch.clamp(sizes.gather(1, segments), min=1.0)
