"""Worked examples: values and gradients by automatic differentiation in float64, to 1e-6."""

from functools import partial

import pytest
import torch

from etude.objectives import advantage, balance
from etude.objectives.aggregate import weights
from etude.objectives.language import next_token, with_mtp, z_loss
from etude.objectives.policy import ppo

close = partial(torch.testing.assert_close, atol=1e-6, rtol=0, check_dtype=False)


def tensor(values, **more):
    return torch.tensor(values, dtype=torch.float64, **more)


LOGITS = [[2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0]]


def test_packed_documents_are_not_predicted_across_their_border():
    logits = tensor([LOGITS], requires_grad=True)
    labels = torch.tensor([[1, 2, -100, 0, -100]])
    logp = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    loss, _ = next_token(logp, labels)
    close(loss[0], tensor([2.340753, 1.743668, 0, 0.743668, 0]))
    mean = loss.sum() / weights(labels != -100).sum()
    close(mean, tensor(1.609363))
    mean.backward()
    close(logits.grad[0, 0], tensor([0.237078, -0.301248, 0.032085, 0.032085]))
    assert not logits.grad[0, 2].any() and not logits.grad[0, 4].any()  # exactly zero


def test_a_weight_scales_a_token_and_never_revives_an_ignored_one():
    logp, labels = tensor([[-1.0, -2.0]]), torch.tensor([[3, -100]])
    loss, _ = next_token(logp, labels, weight=tensor([[0.5, 9.0]]))
    close(loss, tensor([[0.5, 0.0]]))


def test_z_loss_grows_with_the_normaliser():
    logits = tensor([LOGITS[:2]], requires_grad=True)
    loss = z_loss(logits.logsumexp(-1), torch.ones(1, 2, dtype=torch.bool), weight=1e-4).sum() / 2
    close(loss, tensor(4.25966e-4))
    loss.backward()
    close(logits.grad[0, 0] * 1e4, tensor([1.664824, 0.225309, 0.225309, 0.225309]))


def test_the_extra_depth_adds_its_own_mean():
    main, extra = tensor(0.743668), tensor(1.042211)
    close(with_mtp(main, [extra], weight=0.3), tensor(1.056331))
    close(with_mtp(main, [extra], weight=0.1), tensor(0.847889))
    close(with_mtp(main, [extra, extra * 3], weight=0.1), main + 0.2 * extra)
    assert with_mtp(main, [], weight=0.3) is main


ROUTER = [[2.0, 1, 0, -1], [2, 0, 1, -1], [1, 2, 0, -1], [2, 1, -1, 0]]


def routed(score):
    logits = tensor([ROUTER], requires_grad=True)
    scores = score(logits)
    return logits, scores, scores.topk(2).indices, torch.ones(1, 4, dtype=torch.bool)


def test_the_auxiliary_loss_is_divided_by_the_active_experts():
    logits, scores, chosen, valid = routed(lambda z: z.softmax(-1))
    counts = balance.load(chosen, valid, experts=4)
    close(counts, tensor([4, 3, 1, 0]))
    loss = balance.auxiliary(scores, valid, counts, active=2)
    close(loss, tensor(1.591526))
    loss.backward()
    close(logits.grad[0, 0], tensor([0.050431, -0.011058, -0.025854, -0.013519]))


def test_the_three_forms_of_the_auxiliary_loss_differ_by_the_square_of_the_experts():
    """All even, 2 of 32: the paper's 1 / E sum f P is 2 / 32^2, the port's E sum f P is 2."""
    scores, valid = torch.full((1, 16, 32), 1 / 32), torch.ones(1, 16, dtype=torch.bool)
    even = balance.auxiliary(scores, valid, torch.ones(32), active=2)
    close(even, tensor(1.0))
    mean, total = (balance.weight_of(form, experts=32, active=2) for form in ("mean", "sum"))
    assert mean == 2 / 1024 and total == 2 and total == mean * 32**2


def test_the_sequence_loss_normalises_sigmoid_scores():
    logits, scores, chosen, valid = routed(torch.sigmoid)
    loss = balance.sequence(scores, chosen, valid)
    close(loss, tensor([1.261266]))
    loss.sum().backward()
    close(logits.grad[0, 0], tensor([0.007657, 0.004015, -0.021146, -0.026953]))


def test_padding_changes_neither_balance_loss_nor_load():
    _, scores, chosen, valid = routed(torch.sigmoid)
    wide = torch.cat([scores, scores.flip(1)], dim=1)
    picks = torch.cat([chosen, chosen.flip(1)], dim=1)
    mask = torch.cat([valid, ~valid], dim=1)
    close(balance.sequence(wide, picks, mask), balance.sequence(scores, chosen, valid))
    close(balance.load(picks, mask, experts=4), balance.load(chosen, valid, experts=4))
    assert balance.sequence(wide, picks, mask & False).tolist() == [0.0]


def test_two_steps_of_the_bias_move_against_the_load():
    counts, bias = tensor([4, 3, 1, 0]), torch.zeros(4, dtype=torch.float64)
    for _ in range(2):
        bias = balance.bias_step(bias, counts, rate=1e-3)
    close(bias, tensor([-0.002, -0.002, 0.002, 0.002]))
    assert balance.bias_step(bias, tensor([2, 2, 2, 2]), rate=1e-3).equal(bias)  # sign(0) = 0
    close(balance.violation(counts), tensor(2.0))


def mean(loss, mask, aggregate):
    share = weights(mask, aggregate).double()
    return (loss * share).sum() / share.sum()


TRAINED = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("aggregate", "value", "first", "second"),
    [("token", 0.716667, -1 / 6, -1 / 6), ("sequence", 0.7, -0.125, -0.25)],
)
def test_long_replies_weigh_more_by_token_and_the_same_by_sequence(aggregate, value, first, second):
    logp = tensor(
        [[-1, -2, -0.5, -3, -0.1, -0.4], [-0.2, -0.3, -0.6, -0.7, -1, -1]], requires_grad=True
    )
    loss, _ = next_token(logp, torch.where(TRAINED, 1, -100))
    total = mean(loss, TRAINED, aggregate)
    close(total, tensor(value))
    total.backward()
    close(logp.grad, TRAINED * tensor([[first], [second]]))


def test_padding_of_minus_infinity_and_a_runaway_token_leave_finite_gradients():
    old = torch.tensor([[-200.0, -1.0, -torch.inf]])
    logp = torch.tensor([[0.0, -1.0, -torch.inf]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    loss, seen = ppo(logp, old, torch.ones(1, 3), mask)
    loss.sum().backward()
    assert logp.grad.tolist() == [[0.0, -1.0, 0.0]]
    assert all(value.isfinite().all() for value in seen.values())


def test_advantages_of_a_mixed_group_by_each_convention():
    reward = tensor([[1.0, 0.0]])
    close(advantage.group(reward), tensor([[0.7071058, -0.7071058]]))
    close(advantage.group(reward, eps=1e-4), tensor([[0.707007, -0.707007]]))
    close(advantage.group(reward, unbiased=False, eps=0.0), tensor([[1.0, -1.0]]))
    close(advantage.group(reward, std=False), tensor([[0.5, -0.5]]))


def test_a_group_of_equal_rewards_teaches_nothing_at_all():
    reward = torch.full((2, 3), 0.1)
    reward[1, 0] = 1.0
    result = advantage.group(reward, eps=1e-6)
    # exactly, although the mean of three 0.1 is not 0.1
    assert result[0].tolist() == [0.0, 0.0, 0.0]
    assert advantage.mixed(reward).tolist() == [False, True]
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        advantage.group(torch.ones(2, 1))


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(aggregate, pieces):
    torch.manual_seed(0)
    logp = torch.randn(10, 7, dtype=torch.float64).requires_grad_()
    mask = torch.rand(10, 7) < 0.4
    mask[3] = False  # a row without a trained token
    mask[:2] = False  # the first of five pieces has none at all
    labels = torch.where(mask, 1, -100)
    whole = mean(next_token(logp, labels)[0], mask, aggregate)
    (expected,) = torch.autograd.grad(whole, logp)
    total = weights(mask, aggregate).double().sum()
    for rows in torch.arange(10).chunk(pieces):
        loss, _ = next_token(logp[rows], labels[rows])
        ((loss * weights(mask[rows], aggregate)).sum() / total).backward()
    close(logp.grad, expected)
