"""Choosing the next token: penalties, temperature, top-k, top-p, min-p.

Random numbers are keyed by (seed, position).
A generator that is drawn from in order gives a row other numbers when its neighbours change. Here
the number is a hash of the row's own seed and position, so a row samples the same alone, in any
batch, and after any restart.
"""

import hashlib
import math
import operator
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from etude.errors import EtudeError, number, shown, whole
from etude.typing import Float, Int, Tensor

MAX_BIASES, MAX_CHOICES = 1024, 256
COLD = 1e-5  # a lower temperature makes infinities of logits, and takes the likeliest token anyway
MOST = 2**31 - 1  # more than any vocabulary has, and a tensor holds it

# splitmix64 (Steele, Lea and Flood 2014): increment and two multipliers, as signed 64-bit integers
STEP = 0x9E3779B97F4A7C15 - 2**64
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def ids_of(found: Any, name: str = "prompt") -> tuple[int, ...]:
    """Read token ids given as any kind of integers.

    Raises:
        EtudeError: `name` is not a sequence of integers.
    """
    try:
        return tuple(map(operator.index, found))
    except TypeError as error:
        raise EtudeError(name, shown(found), "token ids") from error


def signed(seed: int) -> int:
    """Bring an integer of any size into 64 signed bits."""
    return (seed + 2**63) % 2**64 - 2**63


def mixed(seed: int, *more: int) -> int:
    """A seed of its own for each other row of integers, in 64 signed bits."""
    text = array("q", [seed, *more]).tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: bias, penalties, temperature, top-k, top-p, min-p, draw.

    Args:
        temperature: 0, or less than 1e-5, takes the likeliest token, the lowest id among equals.
        top_k: keep this many of the likeliest tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of likeliest tokens with this probability.
        min_p: keep tokens of at least this share of the likeliest one's probability.
        presence, frequency: penalties on generated ids, once and per occurrence.
        repetition: divides positive and multiplies negative logits of ids of prompt and answer.
        bias: added to the logits of these ids.
        seed: with the number of the answer and the position of a token, all that its draw depends
            on; the first answer is the same whatever `n`.
        n: answers; the prompt is read once for all of them.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        if len(self.bias) > MAX_BIASES:
            raise EtudeError("bias", f"{len(self.bias)} ids", f"at most {MAX_BIASES}")
        heat = number("temperature", self.temperature, 0)
        bias = [number("bias", value, -100, 100) for value in self.bias.values()]
        # plain numbers: a fraction or a huge integer has no place in a tensor beside other requests
        for name, value in {
            "temperature": heat if heat >= COLD else 0.0,
            "top_k": min(whole("top_k", self.top_k, -1), MOST),
            "top_p": number("top_p", self.top_p, 0, 1, open_low=True),
            "min_p": number("min_p", self.min_p, 0, 1),
            "presence": number("presence", self.presence, -2, 2),
            "frequency": number("frequency", self.frequency, -2, 2),
            "repetition": number("repetition", self.repetition, 0, 2, open_low=True),
            "bias": dict(zip(ids_of(self.bias, "bias"), bias, strict=True)),
            "seed": signed(whole("seed", self.seed)),
            "n": whole("n", self.n, 1),
        }.items():
            object.__setattr__(self, name, value)
        if self.n > MAX_CHOICES:
            raise EtudeError("n", shown(self.n), f"at most {MAX_CHOICES}")

    @property
    def adjusts(self) -> bool:
        """Whether logits change before the temperature divides them."""
        return bool(self.bias or self.presence or self.frequency or self.repetition != 1)

    def key(self, choice: int) -> int:
        """What stands for the seed in the draws of one of the answers."""
        return mixed(self.seed, choice) if choice else self.seed


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
    temperature: float | Float[Tensor, " B"] = 1.0,
    top_k: int | Int[Tensor, " B"] = 0,
    top_p: float | Float[Tensor, " B"] = 1.0,
    min_p: float | Float[Tensor, " B"] = 0.0,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Choose one token per row.

    Args:
        logits: of any float dtype; the arithmetic is float32, the running sum float64.
        seeds: one per row.
        positions: where in its own sequence each row stands.
        temperature: divides the logits; 0 takes the largest, the lowest id among equals.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens that holds this probability, at least one.
        min_p: keep tokens of at least this share of the likeliest one's probability.

        The last four are numbers, or tensors with one of each per row, which are not checked.

    Returns:
        The tokens, and their log-probability under the whole temperature-scaled distribution
        (before top-k, top-p and min-p; at temperature 0, under the logits as they are).

    Raises:
        ValueError: temperature or top_k is negative, top_p is not in (0, 1] or min_p not in [0, 1].
    """
    if isinstance(temperature, Tensor):
        logp = tempered(logits, temperature)
        drawn = _draw(logp, seeds, positions, top_k, top_p, min_p)
        tokens = torch.where(temperature > 0, drawn, logits.argmax(-1))
        return tokens, logp.gather(-1, tokens[:, None]).squeeze(1)
    if temperature < 0 or not _sane(top_k, top_p, min_p):
        raise ValueError(
            f"sample: temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}; "
            "expected temperature and top_k of at least 0, top_p in (0, 1] and min_p in [0, 1]"
        )
    logp = tempered(logits, temperature)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        tokens = _draw(logp, seeds, positions, top_k, top_p, min_p)
    return tokens, logp.gather(-1, tokens[:, None]).squeeze(1)


def tempered(
    logits: Float[Tensor, "B V"], temperature: float | Float[Tensor, " B"]
) -> Float[Tensor, "B V"]:
    """Log-probabilities at a temperature, or at one per row; 0 leaves the logits as they are."""
    if isinstance(temperature, Tensor):
        scale = torch.where(temperature > 0, temperature, 1.0).unsqueeze(1)
        return torch.log_softmax(logits.float() / scale, dim=-1)
    scaled = logits.float() if temperature in (0, 1) else logits.float() / temperature
    return torch.log_softmax(scaled, dim=-1)


def truncate(
    p: Float[Tensor, "B V"],
    *,
    top_k: int | Int[Tensor, " B"] = 0,
    top_p: float | Float[Tensor, " B"] = 1.0,
    min_p: float | Float[Tensor, " B"] = 0.0,
) -> Float[Tensor, "B V"]:
    """Zero what lies outside the likeliest `top_k` tokens, `top_p` mass or `min_p` share.

    The result is not renormalised.
    """
    whole = not isinstance(top_k, Tensor) and top_k in (0, p.shape[-1])
    if not (whole and not isinstance(top_p, Tensor) and top_p == 1):
        p = _likeliest(p, top_k, top_p)
    if isinstance(min_p, Tensor) or min_p > 0:
        floor = _column(min_p) * p.amax(-1, keepdim=True)
        p = torch.where(p >= floor, p, 0.0)
    return p


def adjusted(
    logits: Float[Tensor, " V"],
    *,
    bias: Mapping[int, float] | None = None,
    banned: Collection[int] = (),
    written: Sequence[int] = (),
    read: Sequence[int] = (),
    presence: float = 0.0,
    frequency: float = 0.0,
    repetition: float = 1.0,
) -> Float[Tensor, " V"]:
    """Apply one request's bias and penalties to its logits, in the order in which they stand here.

    Args:
        logits: of the next token.
        bias: added to the logits of these ids.
        banned: ids that may not come.
        written: ids generated so far.
        read: ids of the prompt.
        presence: subtracted from ids that were generated.
        frequency: subtracted once per time an id was generated.
        repetition: divides positive and multiplies negative logits of ids that were read or
            generated (arXiv:1909.05858, section 4.1, in the sign-aware form that is in use).
    """
    logits = logits.clone()
    if bias:
        ids = torch.tensor(list(bias), device=logits.device)
        logits[ids] += torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)
    if presence or frequency:
        ids, counts = _ids(written, logits.device).unique(return_counts=True)
        logits[ids] -= presence + frequency * counts.to(logits.dtype)
    if repetition != 1:
        ids = _ids([*read, *written], logits.device).unique()
        seen = logits[ids]
        logits[ids] = torch.where(seen > 0, seen / repetition, seen * repetition)
    if banned:
        logits[_ids(list(banned), logits.device)] = -math.inf
    return logits


def _draw(
    logp: Float[Tensor, "B V"],
    seeds: Int[Tensor, " B"],
    positions: Int[Tensor, " B"],
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
) -> Int[Tensor, " B"]:
    kept = truncate(logp.exp(), top_k=top_k, top_p=top_p, min_p=min_p)
    mass = kept.double().cumsum(-1)
    # inverse transform in order of id: a rounding error moves a border, not the whole draw
    drawn = uniform(seeds, positions)[:, None] * mass[:, -1:]
    tokens = torch.searchsorted(mass, drawn, right=True).squeeze(1)
    return tokens.clamp_max(logp.shape[-1] - 1)


def _likeliest(p: Tensor, top_k: int | Tensor, top_p: float | Tensor) -> Tensor:
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if isinstance(top_k, Tensor):
        most = torch.where(top_k > 0, top_k, p.shape[-1]).unsqueeze(1)
        keep &= torch.arange(p.shape[-1], device=p.device) < most
    elif top_k:
        keep[:, top_k:] = False
    # the mass before a token, among those that top-k left, decides: the first is always kept
    kept = torch.where(keep, ordered, 0.0)
    share = kept.cumsum(-1) / kept.sum(-1, keepdim=True)
    keep &= (share - kept / kept.sum(-1, keepdim=True) < _column(top_p)) | (_column(top_p) >= 1)
    keep[..., 0] = True  # also where top_p is 0 in float32
    return torch.where(torch.zeros_like(keep).scatter(-1, order, keep), p, 0.0)


def _sane(top_k: int | Tensor, top_p: float | Tensor, min_p: float | Tensor) -> bool:
    known = isinstance(top_k, Tensor) or top_k >= 0
    known &= isinstance(top_p, Tensor) or 0 < top_p <= 1
    return bool(known and (isinstance(min_p, Tensor) or 0 <= min_p <= 1))


def _column(value: float | Tensor) -> Tensor:
    return value.unsqueeze(1) if isinstance(value, Tensor) else torch.tensor(value)


def _ids(ids: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(ids, dtype=torch.long, device=device)


def _mix(x: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    x = x + STEP
    x = (x ^ _shift(x, 30)) * FIRST
    x = (x ^ _shift(x, 27)) * SECOND
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, " B"], bits: int) -> Int[Tensor, " B"]:
    return (x >> bits) & (2 ** (64 - bits) - 1)  # a logical shift: torch's own keeps the sign
