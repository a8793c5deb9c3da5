"""What a token receives: the gradient that each objective leaves to rare words, from recorded runs.

MiniMax-M1 (arXiv:2506.13585, section 3.1) traces the gain of CISPO to words that turn back, as
"wait": the base model finds them improbable, so the first updates on a set of rollouts move them
far, and a clipped objective drops them from the later ones.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from etude.data.tasks_reflect import WORD
from etude.models.checkpoint import load
from etude.recipe.objectives import Kind
from etude.recipe.stages import Rl
from etude.rl.objective import loss_of

BINS = (0.01, 0.05, 0.2, 0.5, 1.0)  # upper ends of probabilities at sampling


@dataclass(slots=True)
class Received:
    """What the tokens of one kind got in one round.

    Attributes:
        round: which, from 0.
        kind: `all`, `wait`, or `<= P`: a probability at sampling in the bin that ends at P, and a
            positive advantage.
        sampled: tokens, trained or not; of `all` and `wait`.
        probability: their mean, when they were sampled.
        trained: tokens with an advantage, in updates after the round's first.
        silenced: of them, those whose gradient is zero.
        left: sum over them of |gradient| of the loss by log-probability.
        whole: the same sum had the weights not moved, which is the sum of |advantage|.
        ratio: mean over them of the probability ratio.
    """

    round: int
    kind: str
    sampled: int = 0
    probability: float = 0.0
    trained: int = 0
    silenced: int = 0
    left: float = 0.0
    whole: float = 0.0
    ratio: float = 0.0


def coefficients(
    spec: Kind, old: Sequence[float], ratio: Sequence[float], advantage: Sequence[float]
) -> list[float]:
    """Return the gradient of the loss by the log-probability of each token of one answer.

    By autograd through the objective itself, before tokens are averaged: one that nothing has moved
    gets minus its advantage under every objective here.

    Args:
        spec: the objective.
        old: log-probabilities at the start of the update.
        ratio: probability now over that; an answer's own mean for `gspo`.
        advantage: of each token.
    """
    before = torch.tensor([old], dtype=torch.float64)
    now = (before + torch.tensor([ratio], dtype=torch.float64).log()).requires_grad_()
    mask = torch.ones_like(before, dtype=torch.bool)
    loss, _ = loss_of(spec)(now, before, torch.tensor([advantage], dtype=torch.float64), mask)
    loss.sum().backward()
    assert now.grad is not None
    return now.grad[0].tolist()


def received(records: Path, stage: Rl, start: Path) -> list[Received]:
    """Reduce a run's recorded rollouts to what each kind of token got.

    Args:
        records: `rollouts/<stage>.jsonl`, of all rollouts.
        stage: whose they are.
        start: a checkpoint with the run's vocabulary.
    """
    model = load(start)
    assert model.published and model.published.tokenizer
    word = model.published.tokenizer.encode(f" {WORD}")
    found: dict[tuple[int, str], Received] = {}
    played: dict[str, Mapping[str, Any]] = {}
    counted: set[str] = set()  # a run that was stopped and goes on may say again what it did
    for line in records.open(encoding="utf-8"):
        row = json.loads(line)
        if "of" not in row:
            played[row["key"]] = row
            _sampled(found, row, word)
        elif (key := row["of"]) not in counted and row["update"] % stage.rollout.updates:
            # not the round's first update, in which nothing has moved
            counted.add(key)
            _trained(found, played[key], row["ratio"], stage.objective, word)
    for one in found.values():
        one.probability /= max(one.sampled, 1)
        one.ratio /= max(one.trained, 1)
    return sorted(found.values(), key=lambda one: (one.round, one.kind))


def over_rounds(rows: Sequence[Received], kind: str) -> Received:
    """Add up a kind's rows over rounds and runs."""
    own = [row for row in rows if row.kind == kind]
    whole = Received(-1, kind)
    for name in ("sampled", "trained", "silenced", "left", "whole"):
        setattr(whole, name, sum(getattr(row, name) for row in own))
    for name, weight in (("probability", "sampled"), ("ratio", "trained")):
        total = sum(getattr(row, name) * getattr(row, weight) for row in own)
        setattr(whole, name, total / max(getattr(whole, weight), 1))
    return whole


def _sampled(
    found: dict[tuple[int, str], Received], row: Mapping[str, Any], word: Sequence[int]
) -> None:
    turning = _first(row, word)
    for place, logp in enumerate(row["logp"]):
        for kind in ("all", *(["wait"] if turning[place] else [])):
            one = _of(found, row["step"], kind)
            one.sampled += 1
            one.probability += math.exp(logp)


def _trained(
    found: dict[tuple[int, str], Received],
    row: Mapping[str, Any],
    ratio: Sequence[float],
    spec: Kind,
    word: Sequence[int],
) -> None:
    old = row.get("old", row["logp"])
    given = row["advantage"]
    advantage = given if isinstance(given, list) else [given] * len(old)
    turning = _first(row, word)
    gradient = coefficients(spec, old, ratio, advantage)
    for place, (worth, got) in enumerate(zip(advantage, gradient, strict=True)):
        if not worth:
            continue
        kinds = ["all", *(["wait"] if turning[place] else [])]
        if worth > 0:
            likely = math.exp(old[place])
            kinds.append(f"<= {next((end for end in BINS if likely <= end), BINS[-1]):g}")
        for kind in kinds:
            one = _of(found, row["step"], kind)
            one.trained += 1
            one.silenced += got == 0
            one.left += abs(got)
            one.whole += abs(worth)
            one.ratio += ratio[place]


def _of(found: dict[tuple[int, str], Received], round: int, kind: str) -> Received:
    return found.setdefault((round, kind), Received(round, kind))


def _first(row: Mapping[str, Any], word: Sequence[int]) -> list[bool]:
    """Return of each token that the policy wrote whether the word begins with it."""
    ids = [id for start, end in row["mask"] for id in row["ids"][start:end]]
    return [ids[place : place + len(word)] == list(word) for place in range(len(ids))]
