"""What changes while a stage trains, by the tokens trained so far: rate, batch, weights.

Everything is a function of tokens seen, never of a stored counter, so a resumed run and a growing
batch agree. A stage that counts in steps (RL) passes steps for tokens throughout.
"""

import math

from etude.recipe.parts import Balance, Batch, Mtp, Schedule


def factor(spec: Schedule, tokens: int, total: int, *, batch: int = 1) -> float:
    """Learning rate of the coming step, relative to its peak.

    Args:
        spec: shape, warm-up, floor.
        tokens: trained in this stage so far.
        total: tokens of this stage.
        batch: tokens of the coming step; the warm-up counts them, so that its first step is not
            zero.

    Source: cosine: GLM-4.5, arXiv:2508.06471, section 2.4; `wsd`: MiniCPM, arXiv:2404.06395,
    section 4; exponential decay: MiniMax-Text-01, arXiv:2501.08313.
    """
    seen, whole = spec.begin + tokens, spec.total or spec.begin + total
    if seen < spec.warmup:
        return min(1.0, (seen + batch) / spec.warmup)
    if spec.shape == "constant":
        return 1.0
    start = spec.warmup if spec.shape == "cosine" else whole - spec.decay * whole
    u = min(1.0, max(0.0, (seen - start) / max(1e-9, whole - start)))
    if spec.shape == "wsd" and spec.decay_shape == "exponential":
        return spec.final**u
    fall = _fall("cosine" if spec.shape == "cosine" else spec.decay_shape, u)
    return spec.final + (1 - spec.final) * fall


def _fall(shape: str, u: float) -> float:
    """From 1 at u = 0 to 0 at u = 1."""
    match shape:
        case "linear":
            return 1 - u
        case "sqrt":
            return 1 - math.sqrt(u)
        case _:
            return (1 + math.cos(math.pi * u)) / 2


def rows(spec: Batch, tokens: int, *, ranks: int = 1) -> int:
    """Rows of the coming global batch: in whole rows and a multiple of the ranks.

    Args:
        spec: final rows, and how they are reached: a linear growth, or doublings.
        tokens: trained in this stage so far.
        ranks: each gets the same number of rows, at least one.

    Source: GLM-4.5 section 2.4 (16M to 64M tokens over the first 500B; linear is our choice of
    shape); doublings: MiniMax-Text-01, arXiv:2501.08313 (16M to 128M tokens).
    """
    if spec.doubles_at:
        to_come = sum(tokens < mark for mark in spec.doubles_at)
        return max(1, round(spec.rows / 2**to_come / ranks)) * ranks
    if spec.ramp_from is None or tokens >= spec.ramp_tokens:
        wanted = float(spec.rows)
    else:
        wanted = spec.ramp_from + (spec.rows - spec.ramp_from) * tokens / spec.ramp_tokens
    return max(1, round(wanted / ranks)) * ranks


def mtp_weight(spec: Mtp, tokens: int) -> float:
    """Weight of the extra prediction loss: 0.3, and 0.1 after 15T tokens in GLM-4.5 (2.4)."""
    return spec.weight if spec.after is None or tokens < spec.after else spec.later


def bias_rate(spec: Balance, tokens: int) -> float:
    """Step of the selection bias: `bias_rate`, then 0 (GLM-4.5 section 2.4: 1e-3, 0 after 15T)."""
    return spec.bias_rate if spec.bias_until is None or tokens < spec.bias_until else 0.0
