"""Distillation: how far a student's distribution is from its teacher's, per position.

p is the teacher, q the student, both as log-probabilities over the whole vocabulary; gradient
flows into the student alone. With a temperature T both come from logits / T and the caller
multiplies by T^2, so that the gradient keeps its size (arXiv:1503.02531, section 2.1).
"""

from typing import Literal

import torch

from etude.typing import Float, Tensor

Tail = Literal["tail", "renorm", "truncated"]


def forward_kl(
    teacher: Float[Tensor, "... V"], student: Float[Tensor, "... V"]
) -> Float[Tensor, "..."]:
    """KL(p || q) = sum p (ln p - ln q): the student must cover all that the teacher would say."""
    return _kl(teacher, student)


def reverse_kl(
    teacher: Float[Tensor, "... V"], student: Float[Tensor, "... V"]
) -> Float[Tensor, "..."]:
    """KL(q || p): the student must not say what the teacher would not (MiniLLM, 2306.08543)."""
    return _kl(student, teacher)


def jsd(
    teacher: Float[Tensor, "... V"], student: Float[Tensor, "... V"], *, beta: float
) -> Float[Tensor, "..."]:
    """Generalised Jensen-Shannon divergence: b KL(p || m) + (1 - b) KL(q || m).

    Args:
        teacher, student: log-probabilities.
        beta: weight b in [0, 1] of the mixture m = b p + (1 - b) q. At both ends the formula is 0,
            and by the convention of GKD's implementations 0 stands for the forward KL, 1 for the
            reverse one.

    Raises:
        ValueError: `beta` is outside [0, 1].

    Source: GKD, arXiv:2306.13649, equation 1; the ends: TRL's `GKDTrainer`.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"jsd: beta {beta} is a weight from 0 (forward KL) to 1 (reverse KL)")
    if beta in (0, 1):
        return _kl(teacher, student) if beta == 0 else _kl(student, teacher)
    own = teacher.new_tensor([beta, 1 - beta]).log()
    mixed = torch.logaddexp(teacher + own[0], student + own[1])
    return beta * _kl(teacher, mixed) + (1 - beta) * _kl(student, mixed)


def top_k(
    teacher: Float[Tensor, "... K"], student: Float[Tensor, "... K"], *, rest: Tail = "tail"
) -> Float[Tensor, "..."]:
    """Forward KL where only the teacher's K likeliest tokens are known.

    Args:
        teacher: log-probabilities of those tokens, over the whole vocabulary.
        student: the student's of the same tokens, over the whole vocabulary.
        rest: `tail` puts all other tokens of each into one further bucket: a lower bound of the
            true KL, 0 only where the K probabilities agree. `renorm` scales the teacher's to a sum
            of 1. `truncated` leaves them as they are: biased, and possibly negative.
    """
    if rest == "renorm":
        teacher = teacher - teacher.logsumexp(-1, keepdim=True)
    known = _kl(teacher, student)
    if rest != "tail":
        return known
    left, own = _tail(teacher), _tail(student)
    return known + left.exp() * (left - own)


def advantage(
    teacher: Float[Tensor, "..."], own: Float[Tensor, "..."], *, clip: float | None = None
) -> Float[Tensor, "..."]:
    """Advantage of a sampled token: ln p - ln q, without gradient.

    As the advantage of a policy loss its expected gradient is that of the reverse KL, and it needs
    the teacher's log-probability of one token only.

    Args:
        teacher, own: log-probabilities of the sampled tokens, under both, when they were sampled.
        clip: bound on its size; None = none (Nemotron 3 Ultra's recipes: 20 or 100).

    Source: Nemotron 3 Ultra, multi-teacher on-policy distillation.
    """
    found = (teacher - own).detach()
    return found if clip is None else found.clamp(-clip, clip)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Sum of p (ln p - ln q), where a probability of 0 adds nothing."""
    p = first.exp()
    return torch.where(p > 0, p * (first - second), 0.0).sum(-1)


def _tail(logp: Tensor) -> Tensor:
    """Log of the mass that is left; float16 may round the known to a little above 1."""
    known = logp.logsumexp(-1).clamp(max=-1e-6)
    return torch.log(-torch.expm1(known))
