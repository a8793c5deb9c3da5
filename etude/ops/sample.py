"""Choosing the next token: temperature, top-k, top-p; random numbers keyed by (seed, position).

A generator that is drawn from in order gives a row other numbers when its neighbours change. Here
the number is a hash of the row's own seed and position, so a row samples the same alone, in any
batch, and after any restart.
"""

import torch

from etude.typing import Float, Int, Tensor

# splitmix64 (Steele, Lea and Flood 2014): increment and two multipliers, as signed 64-bit integers
STEP = 0x9E3779B97F4A7C15 - 2**64
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def uniform(seeds: Int[Tensor, " B"], positions: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """One number in (0, 1) per row, a pure function of its seed and position.

    Returns:
        float64, a multiple of 2**-52 plus half of one: never 0 and never 1.
    """
    mixed = _mix(_mix(seeds.long()) + positions.long() * STEP)
    return (_shift(mixed, 12).double() + 0.5) * 2.0**-52


def sample(
    logits: Float[Tensor, "B V"],
    seeds: Int[Tensor, " B"],
    positions: Int[Tensor, " B"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Choose one token per row.

    Args:
        logits: of any float dtype; the arithmetic is float32, the running sum float64.
        seeds: one per row.
        positions: where in its own sequence each row stands.
        temperature: divides the logits; 0 takes the largest, the lowest id among equals.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens that holds this probability, at least one.

    Returns:
        The tokens, and their log-probability under the whole temperature-scaled distribution
        (before top-k and top-p; at temperature 0, under the logits as they are).

    Raises:
        ValueError: temperature or top_k is negative, or top_p is not in (0, 1].
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"sample: temperature {temperature}, top_k {top_k}, top_p {top_p}; "
            "expected temperature and top_k of at least 0 and top_p in (0, 1]"
        )
    scaled = logits.float() if temperature in (0, 1) else logits.float() / temperature
    logp = torch.log_softmax(scaled, dim=-1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        mass = truncate(logp.exp(), top_k=top_k, top_p=top_p).double().cumsum(-1)
        # inverse transform in order of id: a rounding error moves a border, not the whole draw
        drawn = uniform(seeds, positions)[:, None] * mass[:, -1:]
        tokens = torch.searchsorted(mass, drawn, right=True).squeeze(1)
        tokens = tokens.clamp_max(logits.shape[-1] - 1)
    return tokens, logp.gather(-1, tokens[:, None]).squeeze(1)


def truncate(
    p: Float[Tensor, "B V"], *, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "B V"]:
    """Zero what lies outside the likeliest `top_k` tokens or `top_p` mass; not renormalised."""
    if top_k in (0, p.shape[-1]) and top_p == 1:
        return p
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[:, top_k:] = False
    # the mass before a token, among those that top-k left, decides: the first is always kept
    kept = torch.where(keep, ordered, 0.0)
    share = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    keep &= share - kept / kept.sum(-1, keepdim=True) < top_p
    return torch.where(torch.zeros_like(keep).scatter(-1, order, keep), p, 0.0)


def _mix(x: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    x = x + STEP
    x = (x ^ _shift(x, 30)) * FIRST
    x = (x ^ _shift(x, 27)) * SECOND
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, " B"], bits: int) -> Int[Tensor, " B"]:
    return (x >> bits) & (2 ** (64 - bits) - 1)  # a logical shift: torch's own keeps the sign
