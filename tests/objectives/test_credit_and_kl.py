"""Worked examples of advantages, the critic and KL terms: float64, to 1e-6."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.objectives import advantage, kl
from etude.objectives.value import gae, value_loss, whiten

close = partial(torch.testing.assert_close, atol=1e-6, rtol=0, check_dtype=False)
tensor = partial(torch.tensor, dtype=torch.float64)

ALL = torch.ones(1, 3, dtype=torch.bool)
REWARD, VALUE = tensor([[0.0, 0.0, 1.0]]), tensor([[0.2, 0.4, 0.5]])


def test_gae_of_three_tokens():
    """E8."""
    scores, returns = gae(REWARD, VALUE, ALL)
    close(scores, tensor([[0.8, 0.6, 0.5]]))
    close(returns, tensor([[1.0, 1.0, 1.0]]))
    scores, returns = gae(REWARD, VALUE, ALL, lam=0.95)
    close(scores, tensor([[0.74625, 0.575, 0.5]]))
    close(returns, tensor([[0.94625, 0.975, 1.0]]))
    close(whiten(scores, ALL), tensor([[1.102562, -0.254183, -0.848379]]))


def test_an_observation_carries_value_and_advantage_through():
    mask = torch.tensor([[True, False, True]])
    scores, returns = gae(REWARD, VALUE, mask, lam=0.95)
    close(scores, tensor([[0.775, 0.0, 0.5]]))
    assert returns[0, 1] == 0
    wild = torch.where(mask, VALUE, 9.0)  # what the critic says of an observation is not read
    close(gae(REWARD, wild, mask, lam=0.95)[0], scores)


def test_an_answer_that_was_cut_is_worth_the_value_behind_it_and_a_discount_shrinks_it():
    scores, _ = gae(REWARD, VALUE, ALL, lam=0.0, gamma=0.5, last=tensor([0.8]))
    close(scores, tensor([[0.5 * 0.4 - 0.2, 0.5 * 0.5 - 0.4, 1 + 0.5 * 0.8 - 0.5]]))


def test_the_value_loss_has_no_gradient_where_the_kept_value_is_further_off():
    new = tensor([[0.5, 0.1, 0.9]]).requires_grad_()
    loss, seen = value_loss(new, VALUE, torch.ones(1, 3), ALL)
    (loss.sum() / 3).backward()
    close(loss.detach().sum() / 3, tensor(0.21))
    close(new.grad, tensor([[0.0, -0.3, 0.0]]))
    assert seen["clipped"].tolist() == [[True, False, True]]


def test_whitening_of_equal_or_no_values_is_zero():
    assert not whiten(torch.full((2, 3), 0.1), ALL.expand(2, 3)).any()
    assert not whiten(torch.rand(2, 3), (ALL & False).expand(2, 3)).any()
    one = whiten(torch.rand(1, 3), torch.tensor([[True, False, False]]))
    assert one.isfinite().all() and not one.any()


LENGTHS = torch.tensor([2, 3, 1, 2])
WRITTEN = torch.arange(3) < LENGTHS[:, None]
K1 = tensor([[0.5, -0.5, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]])
PLAIN = [1.376443, 1.477466, -0.846070, -0.644024, -0.644024, 0.972349, -0.846070, -0.846070]
SAMPLE = [1.287544, 1.382043, -0.791426, -0.602429, -0.602429, 0.909550, -0.791426, -0.791426]


def test_reinforce_plus_plus_of_four_answers():
    """E20."""
    reward = -0.1 * K1
    for row, (last, won) in enumerate(zip(LENGTHS - 1, (1, 0, 1, 0), strict=True)):
        reward[row, last] += won
    returns = advantage.returns_to_go(reward, WRITTEN)
    close(returns[WRITTEN], tensor([1, 1.05, -0.1, 0, 0, 0.8, -0.1, -0.1]))
    close(whiten(returns, WRITTEN, unbiased=False)[WRITTEN], tensor(PLAIN))
    close(whiten(returns, WRITTEN)[WRITTEN], tensor(SAMPLE))
    close(advantage.returns_to_go(REWARD, ALL, gamma=0.5), tensor([[0.25, 0.5, 1.0]]))
    held = advantage.returns_to_go(REWARD, torch.tensor([[True, False, True]]), gamma=0.5)
    close(held, tensor([[0.5, 0.0, 1.0]]))  # observations are no steps of the discount


def test_its_variant_with_a_baseline_counts_an_answer_once_per_token():
    reward = tensor([[1.0, 0.0], [1.0, 0.0]])
    found = advantage.reinforce_pp_baseline(reward, LENGTHS.view(2, 2))
    close(found, tensor([[1.207615, -0.724569]] * 2))
    assert not advantage.reinforce_pp_baseline(torch.ones(2, 2), LENGTHS.view(2, 2)).any()


def test_leave_one_out_is_the_distance_to_the_mean_of_the_others():
    reward = tensor([[1.0, 0, 0, 1]])
    close(advantage.leave_one_out(reward), tensor([[0.666667, -0.666667, -0.666667, 0.666667]]))
    narrow = advantage.leave_one_out(reward, std=True, eps=1e-9)
    close(narrow, 0.666667 / reward.std() * tensor([[1.0, -1, -1, 1]]))


def test_the_batchs_deviation_keeps_groups_in_proportion():
    reward = tensor([[1.0, 0.0], [0.2, 0.0], [0.5, 0.5]])
    found = advantage.group_mean_batch_std(reward, eps=1e-9)
    close(found, tensor([[0.5, -0.5], [0.1, -0.1], [0, 0]]) / reward.std())


def test_decoupled_rewards_keep_the_small_one_audible():
    """Added first, the wide reward would decide alone; normalised first, both count alike."""
    parts = {"right": tensor([[1.0, 0, 1, 0]]), "brief": tensor([[0.0, 0.001, 0.001, 0]])}
    found = advantage.decoupled(parts, {}, eps=1e-12)
    assert found[0, 2] == found.max() and found[0, 3] == found.min()
    close(found[0, :2], tensor([0.0, 0.0]))  # right but long is worth as much as wrong but brief
    close(found.std(), tensor(1.0))
    alone = advantage.decoupled(parts, {"brief": 0.0}, eps=1e-12)
    close(alone, whiten(parts["right"] - 0.5, torch.ones(1, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="no reward part shrot; known: brief, right"):
        advantage.decoupled(parts, {"shrot": 1.0})


GROUPED = [
    advantage.group,
    partial(advantage.group, std=False),
    advantage.group_mean_batch_std,
    advantage.leave_one_out,
    lambda reward: advantage.decoupled({"one": reward}, {}),
]


@given(st.integers(0, 10**6), st.sampled_from(GROUPED))
@settings(max_examples=30, deadline=None)
def test_a_group_of_equal_rewards_is_exactly_zero_and_the_others_sum_to_nothing(seed, estimator):
    draw = torch.Generator().manual_seed(seed)
    reward = torch.rand(3, 5, generator=draw)
    reward[1] = float(torch.rand((), generator=draw))  # whose mean may be off in its last bit
    found = estimator(reward)
    assert not found[1].any() and found.isfinite().all()
    assert found.sum(1).abs().max() < 1e-4
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        estimator(torch.ones(2, 1))


LOGP, REF = tensor([[0.5, 0.2, 0.1]]).log(), tensor([[0.4, 0.3, 0.1]]).log()
KL = {
    "k1": ([0.223144, -0.405465, 0], [1, 1, 1]),
    "k2": ([0.024897, 0.082201, 0], [0.223144, -0.405465, 0]),
    "k3": ([0.023144, 0.094535, 0], [0.2, -0.5, 0]),
    "k3_unbiased": ([0.023144, 0.094535, 0], [0.223144, -0.405465, 0]),
}


@pytest.mark.parametrize("form", KL)
def test_values_and_gradients_of_a_kl_estimate(form):
    """E19, whose gradients are those of the mean of three."""
    logp = LOGP.clone().requires_grad_()
    found = kl.estimate(logp, REF, ALL, form)
    found.sum().backward()
    close(found[0].detach(), tensor(KL[form][0]))
    close(logp.grad[0], tensor(KL[form][1]))


EXACT = [-0.005022, -0.153774, 0.158796]
EXPECTED = {"k1": [0.0] * 3, "k2": EXACT, "k3_unbiased": EXACT}
EXPECTED["k3"] = [0.021987, -0.175924, 0.153937]


@pytest.mark.parametrize("form", EXPECTED)
def test_the_expected_gradient_over_a_vocabulary_of_three(form):
    """E19: of all tokens, by their probability; only two forms give that of the true KL."""
    logits = tensor([0.0, -0.3, 0.2]).requires_grad_()
    ref = tensor([0.0, 0.3, -0.2]).log_softmax(-1)[None]
    logp = logits.log_softmax(-1)[None]
    (logp.detach().exp() * kl.estimate(logp, ref, ALL, form)).sum().backward()
    close(logits.grad, tensor(EXPECTED[form]))
    now = logits.log_softmax(-1)
    (true,) = torch.autograd.grad((now.exp() * (now - ref)).sum(), logits)
    close(true, tensor(EXACT))


def test_runaway_gaps_are_cut_and_still_pull_the_right_way():
    logp = tensor([[-300.0, -5.0, -torch.inf]]).requires_grad_()
    ref = tensor([[-1.0, -1.0, -torch.inf]])
    found = kl.estimate(logp, ref, torch.tensor([[True, True, False]]), "k3_unbiased")
    found.sum().backward()
    close(found[0].detach(), tensor([10.0, 10.0, 0.0]))
    close(logp.grad[0], tensor([0.0, -4.0, 0.0]))  # up, towards the reference
