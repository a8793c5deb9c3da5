"""A supervised loss beside the policy's: its own denominator, however the step is cut."""

import pytest
import torch

from etude.nn.decoder import Scores
from etude.objectives.language import IGNORE
from etude.parallel.mesh import Ranks
from etude.recipe.objectives import Grpo
from etude.rl.batch import micro_batches
from etude.rl.objective import PolicyObjective
from etude.rl.ptx import Extra, Supervised, WithSupervised, beside, taught
from etude.rl.rollout import Sample
from etude.rl.rows import Told
from tests.rl.fakes import model

ALONE = Ranks()


def attempts():
    made = []
    for n, (size, advantage) in enumerate([(3, 1.0), (5, -1.0), (2, 0.5), (6, -0.5)]):
        own = [(7 * n + 3 * t) % 300 for t in range(size)]
        one = Sample([5, 6, *own], [False, False, *[True] * size], [0.0] * (size + 2), 2)
        one.logp = [0.0, 0.0, *[-2.0] * size]
        one.advantage = [0.0, 0.0, *[advantage] * size]
        made.append(one)
    return made


TOLD = [
    Told([9, 8, 7, 6, 5], [False, True, True, True, False]),
    Told([1, 2, 3], [False, True, True]),
]


def gradient(policy, objective, micros):
    """As the trainer does it: one denominator over all micro-batches, one sum of losses."""
    policy.zero_grad()
    denominator = sum(objective.denominator(micro) for micro in micros)
    losses, shown = 0.0, {}
    for micro in micros:
        scores = policy(micro.ids, segments=micro.segments, pos=micro.pos, labels=micro.labels)
        loss, seen = objective(scores, micro)
        (loss.sum() / denominator).backward()
        losses += float(loss.sum()) / denominator
        for name, value in seen.items():
            counted = torch.where(micro.labels != IGNORE, value, 0).sum()
            shown[name] = shown.get(name, 0.0) + float(counted)
    return losses, torch.cat([p.grad.flatten() for p in policy.parameters()]), shown


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_the_step_is_the_policys_mean_plus_a_weight_times_the_mean_of_the_conversations(aggregate):
    policy = model()
    grpo = PolicyObjective(Grpo(aggregate=aggregate), 8)
    objective, batches = WithSupervised(grpo), list(micro_batches(attempts(), 4))
    alone, own, _ = gradient(policy, grpo, batches)
    lessons = taught(TOLD, 4, ALONE)
    told = [Supervised(r.ids, r.labels, r.segments, r.pos, 1.0, 1.0, "ptx") for r in lessons]
    policy.zero_grad()
    total = 0.0
    for micro in told:
        scores = policy(micro.ids, segments=micro.segments, pos=micro.pos, labels=micro.labels)
        total = total - torch.where(micro.labels != IGNORE, scores.logp, 0).sum() / 5
    total.backward()
    taught_by = torch.cat([p.grad.flatten() for p in policy.parameters()])

    both = beside(batches, [Extra("ptx", lessons, 0.3)], grpo, ALONE)
    loss, found, shown = gradient(policy, objective, both)
    assert loss == pytest.approx(alone + 0.3 * float(total), abs=1e-6)
    torch.testing.assert_close(found, own + 0.3 * taught_by, atol=1e-6, rtol=1e-4)
    labels = sum(batch.tokens for batch in batches)
    assert shown["ptx"] / labels == pytest.approx(float(total), abs=1e-5)  # logged as its own mean


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (4, 1)])
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(rows, size):
    policy, grpo = model(), PolicyObjective(Grpo(), 8)
    found = []
    for cut, part in ((4, 2), (rows, size)):
        batches = list(micro_batches(attempts(), cut))
        extra = Extra("ptx", taught(TOLD, part, ALONE), 0.5)
        found.append(
            gradient(policy, WithSupervised(grpo), beside(batches, [extra], grpo, ALONE))[1]
        )
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


def test_supervised_tokens_do_not_count_as_the_policys():
    grpo, batches = PolicyObjective(Grpo(), 8), list(micro_batches(attempts(), 4))
    both = beside(batches, [Extra("ptx", taught(TOLD, 4, ALONE), 0.5)], grpo, ALONE)
    assert sum(one.tokens for one in both) == sum(one.tokens for one in batches)
    objective = WithSupervised(grpo)
    assert objective.denominator(both[-1]) == 0 and not objective.entropy


def test_a_step_without_signal_stays_idle():
    grpo = PolicyObjective(Grpo(), 8)
    assert beside([], [Extra("ptx", taught(TOLD, 4, ALONE), 0.5)], grpo, ALONE) == []


def test_ranks_get_equally_many_batches_and_every_conversation_once():
    told = [Told([n, n + 1, n + 2], [False, True, True]) for n in range(5)]
    shares = [taught(told, 2, Ranks(rank=rank, world=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    counted = [
        int(row[0])
        for share in shares
        for batch in share
        for row, labels in zip(batch.ids, batch.labels, strict=True)
        if (labels != IGNORE).any()
    ]
    assert sorted(counted) == [0, 1, 2, 3, 4]


def test_scores_of_the_policy_go_to_the_policy():
    seen = []

    class Policy:
        entropy = True

        def __call__(self, scores, micro):
            seen.append(micro)
            return scores.logp, {}

        def denominator(self, micro):
            return 7.0

    objective = WithSupervised(Policy())
    logp = torch.zeros(1, 2)
    assert objective(Scores(logp, None, (), []), "micro")[0] is logp and seen == ["micro"]
    assert objective.denominator("micro") == 7.0 and objective.entropy
