"""Routing replay: what trains takes the experts that the sampler took, and the router still learns.

GSPO (arXiv:2507.18071, section 5.3): between sampling and training a router may change its mind,
and a token's probability then comes from other weights than the ones that sampled it.
"""

import json

import pytest
import torch

from etude.rl.attempt import Limits
from etude.rl.batch import IGNORED, pack
from etude.rl.frozen import freeze, thaw
from etude.rl.local import LocalSampler
from etude.rl.rollout import rollouts
from tests.rl.fakes import model, player
from tests.rl.test_early import Slow
from tests.rl.test_source import at, source


def sampled(policy, turns=1, overlap=False, count=3):
    limits = Limits(10, 999, routes=True, overlap=overlap)
    sampler = LocalSampler(policy, overlap=overlap)
    ones = [Slow(0.0, turns=turns) for _ in range(count)]
    return rollouts(sampler, player(lambda *_: "").dialogue, ones, range(count), limits)


def scores(policy, batch, **how):
    about = {"labels": batch.labels, "segments": batch.segments, "pos": batch.pos}
    return policy(batch.ids, **about, **how)


def chosen(found):
    """Experts [B, T, L, A] that a forward pass took."""
    return torch.stack([route.chosen for route in found.routes], dim=2)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("turns", [1, 3])
def test_the_engine_says_which_experts_each_token_took_and_training_repeats_them(turns, overlap):
    policy = model()
    samples = sampled(policy, turns, overlap)
    batch = pack(samples)
    assert batch.routes.shape == (*batch.ids.shape, 1, 2)  # of two layers the first is dense
    for row, sample in enumerate(samples):
        known = batch.routes[row, : len(sample.ids) - 1]
        assert (known >= 0).all() and (batch.routes[row, len(sample.ids) - 1 :] == -1).all()
    own = scores(policy, batch)
    free = (batch.routes < 0) | (batch.routes == chosen(own))
    assert free.all()  # with the same weights the trainer's choice is the engine's
    torch.testing.assert_close(scores(policy, batch, routes=batch.routes).logp, own.logp)


def test_experts_are_replayed_after_the_router_has_changed_and_it_still_learns():
    policy = model()
    batch = pack(sampled(policy))
    [(_, router)] = policy.routers()
    with torch.no_grad():
        router.weight.copy_(router.weight.flip(0))
    moved = scores(policy, batch)
    known = (batch.routes >= 0) & (batch.segments > 0)[..., None, None]
    assert (chosen(moved) != batch.routes)[known].any()
    again = scores(policy, batch, routes=batch.routes)
    assert (chosen(again) == batch.routes)[known].all()
    counted = batch.labels != IGNORED
    assert not torch.allclose(again.logp[counted], moved.logp[counted])
    again.logp[counted].sum().backward()
    assert router.weight.grad.abs().sum() > 0


def test_what_the_sampler_did_not_say_the_router_chooses():
    policy = model()
    batch = pack(sampled(policy))
    nothing = torch.full_like(batch.routes, -1)
    torch.testing.assert_close(
        scores(policy, batch, routes=nothing).logp, scores(policy, batch).logp
    )


def test_a_source_trains_with_the_experts_of_its_rollouts():
    made = source(None, rollout={"routes": True, "max_tokens": 8})
    play = made.rounds.play

    def rewarded(*words):
        played = play(*words)
        for group in played.groups:
            for n, sample in enumerate(group.samples):
                sample.reward = sample.raw = float(n % 2)
        return played

    made.rounds.play = rewarded
    batches = made.next(at(0))
    assert batches and all(batch.routes is not None for batch in batches)
    assert made.metrics()["logp_gap"] < 2e-5
    assert (
        source(None, rollout={"max_tokens": 8})
        .rounds.play(0, made._pace(0))
        .groups[0]
        .samples[0]
        .routes
        is None
    )


def test_a_sample_with_routes_survives_being_saved():
    [sample] = sampled(model(), turns=2, count=1)
    again = thaw(json.loads(json.dumps(freeze(sample))))
    assert torch.equal(again.routes, sample.routes)
    assert (again.ids, again.mask, again.logp) == (sample.ids, sample.mask, sample.logp)
    assert again.versions == sample.versions
