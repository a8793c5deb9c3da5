"""Routing: what the bias may do, the group limit, the weights."""

import pytest
import torch

from etude.ops import route


def chosen(scores, bias=None, **rule):
    return route.choose(scores, bias, **rule).sort(-1).values.tolist()


def test_a_constant_on_all_biases_changes_no_choice():
    scores, bias = torch.rand(64, 16), torch.randn(16) * 0.1
    rule = {"active": 4, "groups": 4, "group_topk": 2}
    assert chosen(scores, bias, **rule) == chosen(scores, bias + 7.0, **rule)


def test_the_bias_moves_the_choice_and_not_the_weights():
    """Worked example: bias -0.5 on expert 0 makes the token choose experts 1 and 2."""
    z = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([-0.5, 0.0, 0.0, 0.0])
    scores = z.sigmoid()
    picked = route.choose(scores, bias, active=2).sort(-1).values
    assert picked.tolist() == [[1, 2]]
    weights = route.weigh(scores, picked, normalize=True, scale=1.0)
    assert weights[0].tolist() == pytest.approx([0.593845, 0.406155], abs=1e-6)


def test_groups_rank_by_the_sum_of_their_two_best():
    # group 0 holds the best expert; group 1 has the larger sum of two
    scores = torch.tensor([[0.9, 0.1, 0.0, 0.6, 0.5, 0.0]])
    assert chosen(scores, active=2, groups=2, group_topk=1) == [[3, 4]]
    assert chosen(scores, active=2) == [[0, 3]]


def test_all_groups_kept_is_no_limit():
    scores = torch.rand(32, 8)
    assert chosen(scores, active=3, groups=4, group_topk=4) == chosen(scores, active=3)


def test_a_barred_expert_loses_even_to_a_negative_score():
    scores = torch.tensor([[0.9, 0.8, 0.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, -1.0, -2.0])
    assert chosen(scores, bias, active=2, groups=2, group_topk=1) == [[0, 1]]
    assert chosen(scores, -bias * 3, active=2, groups=2, group_topk=1) == [[2, 3]]


def test_weights_sum_to_the_scale_after_normalising():
    scores = torch.rand(10, 8)
    picked = route.choose(scores, None, active=3)
    weights = route.weigh(scores, picked, normalize=True, scale=2.5)
    torch.testing.assert_close(weights.sum(-1), torch.full((10,), 2.5))
    plain = route.weigh(scores, picked, normalize=False, scale=1.0)
    assert torch.equal(plain, scores.gather(-1, picked))


def test_scores_are_float32_whatever_the_model_is():
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    narrow = route.score(x.bfloat16(), weight.bfloat16(), kind="sigmoid")
    assert narrow.dtype == torch.float32
    wide = route.score(x.bfloat16().float(), weight.bfloat16().float(), kind="sigmoid")
    assert torch.equal(narrow, wide)


def test_softmax_scores_sum_to_one():
    scores = route.score(torch.randn(4, 8), torch.randn(6, 8), kind="softmax")
    torch.testing.assert_close(scores.sum(-1), torch.ones(4))
