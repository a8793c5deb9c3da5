"""Losses of language modelling: the next token, the tokens after it, the normaliser."""

from collections.abc import Sequence

import torch

from etude.typing import Bool, Float, Int, Tensor

IGNORE = -100  # the label of a position that has nothing to predict


def next_token(
    logp: Float[Tensor, "B T"],
    labels: Int[Tensor, "B T"],
    *,
    weight: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
    """Cross-entropy of the label of each position, in nats.

    Args:
        logp: log-probability of each position's label; any finite value where there is none.
        labels: the id each position predicts, -100 where nothing is predicted (padding, the last
            token of a document, a turn that is not trained).
        weight: how much each token counts beyond the mask; None = alike.

    Returns:
        The loss of each token, zero where ignored, and no further values. The trainer sums and
        divides by the number of labels of the whole step.
    """
    loss = torch.where(labels != IGNORE, -logp, 0.0)
    return (loss if weight is None else loss * weight), {}


def z_loss(
    lse: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, weight: float = 1e-4
) -> Float[Tensor, "B T"]:
    """Pull the log of the softmax normaliser towards zero.

    Args:
        lse: logsumexp of each position's logits.
        mask: true on counted positions.
        weight: coefficient; 1e-4 for output logits, 1e-3 is common for a router's.

    Returns:
        `weight * lse^2` of each token, zero where masked.

    Source: PaLM, arXiv:2204.02311, section 5 (training setup, auxiliary z loss).
    """
    return torch.where(mask, weight * lse.square(), 0.0)


def with_mtp(
    main: Float[Tensor, ""], depths: Sequence[Float[Tensor, ""]], *, weight: float
) -> Float[Tensor, ""]:
    """Add the losses of extra prediction depths: `main + weight * mean over depths`.

    Args:
        main: mean loss of the next token.
        depths: mean loss of each depth, each over its own labels: depth k has k fewer per document.
        weight: 0.3, later 0.1 (GLM-4.5 section 2.4, after DeepSeek-V3).

    Source: DeepSeek-V3, arXiv:2412.19437, section 2.2, equations 24 and 25.
    """
    return main + weight / len(depths) * sum(depths) if depths else main
