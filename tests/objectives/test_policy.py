"""Worked examples of the policy losses: values and gradients in float64, to 1e-6.

One problem, two answers of 3 and 2 tokens, advantages +1 and -1, and the ratios below.
"""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.objectives import mismatch
from etude.objectives.aggregate import Step, denominator, weights
from etude.objectives.policy import ppo
from etude.objectives.policy_sequence import gspo, gspo_token, mirror_descent
from etude.objectives.policy_weight import cispo, masked_log_ratio

close = partial(torch.testing.assert_close, atol=1e-6, rtol=0, check_dtype=False)
tensor = partial(torch.tensor, dtype=torch.float64)

MASK = torch.tensor([[True, True, True], [True, True, False]])
OLD = tensor([[0.5, 0.2, 0.1], [0.4, 0.25, 1.0]]).log()
RATIO = tensor([[1.0, 1.5, 0.7], [0.7, 1.6, 1.0]])
SIGNS = tensor([[1.0] * 3, [-1.0] * 3])


def taught(loss, aggregate, *, advantage=SIGNS, ratio=RATIO, weight=1.0, constant=1):
    """Return the aggregated loss, its gradient on the five tokens, and what was seen."""
    logp = (OLD + ratio.log()).requires_grad_()
    each, seen = loss(logp, OLD, advantage, MASK)
    total = (weight * each * weights(MASK, aggregate)).sum()
    total = total / denominator(MASK, aggregate, constant=constant)
    (gradient,) = torch.autograd.grad(total, logp)
    assert not gradient[~MASK].any()
    return total.detach(), gradient[MASK], seen


CISPO = partial(cispo, weight_max=1.28)
HALF = SIGNS / 2
CASES = {
    "E9 PPO": (ppo, "token", {}, -0.1, [-0.2, 0, -0.14, 0, 0.32]),
    "E9 dual clip": (partial(ppo, dual=1.5), "token", {}, -0.12, [-0.2, 0, -0.14, 0, 0]),
    "E10 GRPO": (ppo, "sequence", {}, 0.116667, [-0.166667, 0, -0.116667, 0, 0.4]),
    "E11 Dr.GRPO": (
        ppo,
        "constant",
        {"advantage": HALF, "constant": 8},
        -0.015625,
        [-0.03125, 0, -0.021875, 0, 0.05],
    ),
    "E12 DAPO": (partial(ppo, high=0.28), "token", {}, -0.116, [-0.2, 0, -0.14, 0, 0.32]),
    "E13 GSPO": (gspo, "sequence", {}, 0.028950, [0, 0, 0, 0.264575, 0.264575]),
    "E13 GSPO, wide": (
        partial(gspo, low=0.2, high=0.2),
        "sequence",
        {},
        0.020952,
        [-0.169399] * 3 + [0.264575] * 2,
    ),
    "E13 GSPO-token": (gspo_token, "sequence", {}, 0.028950, [0, 0, 0, 0.264575, 0.264575]),
    "E13 GSPO-token of unlike advantages": (
        partial(gspo_token, low=0.2, high=0.2),
        "sequence",
        {"advantage": tensor([[1.0, 0, 2], [-1, -1, -1]])},
        0.020952,
        [-0.169399, 0, -0.338799, 0.264575, 0.264575],
    ),
    "E14 CISPO": (CISPO, "token", {}, 0.406357, [-0.2, -0.256, -0.14, 0.14, 0.256]),
    "E14 with a lower bound": (
        partial(CISPO, weight_min=0.8),
        "token",
        {},
        None,
        [-0.2, -0.256, -0.16, 0.16, 0.256],
    ),
    "E14 open to 5": (cispo, "token", {}, 0.400689, [-0.2, -0.3, -0.14, 0.14, 0.32]),
    "E14 a cap of 0.2, as TRL has it where nothing is said": (
        partial(cispo, weight_max=0.2),
        "token",
        {},
        0.094685,
        [-0.04] * 3 + [0.04] * 2,
    ),
    "E14 unified mask": (
        partial(CISPO, drop_low=0.2, drop_high=0.2),
        "token",
        {},
        None,
        [-0.2, 0, -0.14, 0, 0.256],
    ),
    "E15 Kimi K2": (
        partial(mirror_descent, tau=0.1, scale="squared"),
        "sequence",
        {"advantage": HALF},
        0.253303,
        [-0.049512] * 3 + [0.051133] * 2,
    ),
    "E15 Kimi K2, surrogate": (
        partial(mirror_descent, tau=0.1),
        "sequence",
        {"advantage": HALF},
        0.592162,
        [-0.247560] * 3 + [0.255666] * 2,
    ),
    "E15 by length": (
        partial(mirror_descent, tau=0.1, by_length=True),
        "sequence",
        {"advantage": HALF},
        None,
        [-0.247560 / 3] * 3 + [0.255666 / 2] * 2,
    ),
    "E16 Kimi K2.5": (
        partial(masked_log_ratio, tau=0.1),
        "token",
        {"advantage": HALF},
        -0.087205,
        [-0.1, 0.016219, -0.014267, -0.014267, 0.018800],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_worked_example(name):
    loss, aggregate, how, value, gradient = CASES[name]
    total, found, _ = taught(loss, aggregate, **how)
    if value is not None:
        if name.endswith("unlike advantages"):  # its value is not in the example: by hand
            value = (-1.016396 * 3 / 3 + 1.058301) / 2
        close(total, tensor(value))
    close(found, tensor(gradient))


def test_what_ppo_says_it_saw():
    _, _, seen = taught(partial(ppo, dual=1.5), "token")
    assert seen["clipped_low"].tolist() == [[False] * 3, [True, False, False]]
    assert seen["clipped_high"].tolist() == [[False, True, False], [False] * 3]
    assert seen["clipped_dual"].tolist() == [[False] * 3, [False, True, False]]
    close(seen["ratio"][MASK].mean(), tensor(1.1))


def test_cispo_counts_weights_at_the_cap_whatever_the_sign():
    _, _, seen = taught(CISPO, "token")
    assert seen["clipped_high"].tolist() == [[False, True, False], [False, True, False]]
    with pytest.raises(ValueError, match="bound the ratio itself"):
        taught(partial(cispo, weight_min=1.0, weight_max=0.2), "token")


@pytest.mark.parametrize(("objective", "learns"), [(ppo, False), (cispo, True)])
def test_a_rare_token_that_grew_likely_keeps_its_gradient_only_under_cispo(objective, learns):
    """MiniMax-M1 section 3.1: clipping the update silences what opens a new line of thought."""
    logp = tensor([[-0.7, -2.0]]).requires_grad_()  # the second went from e^-4 to e^-2
    bound = {"weight_max": 1.2} if learns else {"high": 0.2}
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = objective(logp, tensor([[-0.7, -4.0]]), torch.ones(1, 2), mask, **bound)
    loss.sum().backward()
    close(logp.grad[0], tensor([-1.0, -1.2 if learns else 0.0]))


WEIGHT = tensor([[1.0, 3.0, 0.6], [1.1, 0.4, 1.0]])  # trainer's over sampler's probability
SOFT = [-0.36, 0, -0.252, 0, 0.1408]
MISMATCH = [
    ("E17 none", None, -0.116, [-0.2, 0, -0.14, 0, 0.32]),
    ("tis_token", {"cap": 2.0}, -0.492, [-0.2, 0, -0.084, 0, 0.128]),
    ("mask_token", {"low": 0.5, "high": 2.0}, -0.108, [-0.2, 0, -0.084, 0, 0]),
    ("tis_sequence", {"cap": 2.0}, -0.8616, SOFT),
    ("mask_sequence", {"cap": 3.0}, -0.8616, SOFT),
    ("mask_geometric", {"low": 0.8, "high": 1.25}, -1.052, [-0.2, 0, -0.084, 0, 0]),
]


@pytest.mark.parametrize(("name", "how", "value", "gradient"), MISMATCH)
def test_a_correction_weighs_the_terms_and_carries_no_gradient(name, how, value, gradient):
    weight = 1.0
    if how is not None:
        old = OLD.clone().requires_grad_()
        weight = getattr(mismatch, name)(old, OLD - WEIGHT.log(), MASK, **how)
        assert not weight.requires_grad
    total, found, _ = taught(partial(ppo, high=0.28), "token", weight=weight)
    close(total, tensor(value))
    close(found, tensor(gradient))


def test_a_whole_answer_is_dropped_above_the_cap():
    weight = mismatch.mask_sequence(OLD, OLD - WEIGHT.log(), MASK, cap=1.5)
    close(weight, tensor([[0.0] * 3, [0.44, 0.44, 0]]))


def test_nemotrons_masked_importance_sampling_at_the_first_update():
    """E18: the ratio is 1 in value, and the mask's bounds are 0.5 and 2."""
    weight = mismatch.mask_token(OLD, OLD - WEIGHT.log(), MASK, low=0.5, high=2.0)
    total, found, _ = taught(ppo, "token", ratio=torch.ones(2, 3), weight=weight)
    close(total, tensor(-0.1))
    close(found, tensor([-0.2, 0, -0.12, 0.22, 0]))


def test_only_a_bad_answer_that_grew_unlikely_is_masked():
    """Answers moved by ln(1.05) / 3 and ln(1.12) / 2 upwards per token: `old - now` is negative."""
    logp = OLD + RATIO.log()
    mask = partial(mismatch.opsm, mask=MASK, delta=0.05)
    assert mask(logp, OLD, SIGNS).equal(MASK.float())
    assert mask(OLD, logp, SIGNS).tolist() == [[1.0] * 3, [0.0] * 3]  # ln(1.12) / 2 = 0.0567
    assert mask(OLD, logp, -SIGNS).equal(MASK.float())  # the first: 0.0163


def test_figures_of_the_mismatch():
    found = mismatch.figures(OLD, OLD - WEIGHT.log(), MASK)
    expected = {"k1": 0.046639, "k3": 0.266639, "weight": 1.22, "spread": 1.853333}
    expected |= {"effective": 0.634442, "outside": 0.4}
    close({name: found[f"mismatch_{name}"] for name in expected}, expected)
    mine = OLD[MASK].exp()
    pair = torch.stack([mine, mine / WEIGHT[MASK]])
    close(tensor(found["mismatch_correlation"]), torch.corrcoef(pair)[0, 1])
    alike = mismatch.figures(OLD, OLD, MASK)
    assert alike["mismatch_k3"] == 0 and alike["mismatch_effective"] == pytest.approx(1)
    assert mismatch.figures(OLD, OLD, MASK & False) == {}


LOSSES = [ppo, partial(ppo, dual=3.0), cispo, gspo, gspo_token, mirror_descent, masked_log_ratio]
LOSSES += [partial(mirror_descent, scale="squared", by_length=True)]
LOSSES += [partial(cispo, drop_low=0.2, drop_high=0.2)]
AGGREGATES = ["token", "sequence", "sequence_sum", "constant", "batch_token_prompt"]
AGGREGATES += ["token_and_sequence"]


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_a_trained_token_give_exactly_zero_and_padding_may_be_infinite(loss):
    logp = torch.full((2, 3), -torch.inf).requires_grad_()
    each, seen = loss(logp, torch.full((2, 3), -torch.inf), torch.ones(2, 3), MASK & False)
    each.sum().backward()
    assert not each.any() and not logp.grad.any()
    assert all(value.isfinite().all() for value in seen.values())


@pytest.mark.parametrize("name", [name for name, how, *_ in MISMATCH if how])
def test_corrections_of_masked_rows_are_zero(name):
    how = dict(next(how for one, how, *_ in MISMATCH if one == name))
    infinite = torch.full((2, 3), -torch.inf)
    assert not getattr(mismatch, name)(infinite, infinite, MASK & False, **how).any()


@given(st.integers(0, 10**6), st.sampled_from(AGGREGATES), st.sampled_from(LOSSES))
@settings(max_examples=25, deadline=None)
def test_the_gradient_of_a_step_does_not_depend_on_its_cut(seed, aggregate, loss):
    """Whole, in 2 and in 5 pieces; ranks are pieces too."""
    draw = torch.Generator().manual_seed(seed)
    logp = torch.randn(10, 6, generator=draw, dtype=torch.float64).requires_grad_()
    old = logp.detach() + 0.3 * torch.randn(10, 6, generator=draw, dtype=torch.float64)
    advantage = torch.randn(10, 1, generator=draw, dtype=torch.float64).expand(10, 6)
    mask = torch.rand(10, 6, generator=draw) < 0.5
    mask[2] = False
    tokens = mask.sum(1).view(5, 2).sum(1, keepdim=True).expand(5, 2).flatten()
    step = Step(int(mask.sum()), int(mask.any(1).sum()))

    def gradient(pieces):
        cuts = [*torch.arange(10).chunk(pieces)]
        known = [{"group_tokens": tokens[rows].float(), "step": step} for rows in cuts]
        how = {"constant": 7, "rows": torch.ones(10, dtype=torch.bool)}
        parts = [
            denominator(mask[rows], aggregate, **how | know | {"rows": how["rows"][rows]})
            for rows, know in zip(cuts, known, strict=True)
        ]
        found = torch.zeros_like(logp)
        for rows, know in zip(cuts, known, strict=True):
            each, _ = loss(logp[rows], old[rows], advantage[rows], mask[rows])
            total = (each * weights(mask[rows], aggregate, **know)).sum() / sum(parts)
            found += torch.autograd.grad(total, logp)[0]
        return found

    whole = gradient(1)
    assert whole.isfinite().all()
    for pieces in (2, 5):
        close(gradient(pieces), whole)


def test_the_aggregates_by_hand():
    """Losses 1, 2, 3 and 10, 20 of two answers to one problem."""
    loss = tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 0.0]])
    known = {"group_tokens": tensor([5.0, 5.0]), "step": Step(5, 2)}

    def mean(aggregate):
        total = (loss * weights(MASK, aggregate, **known)).sum()
        return float(total / denominator(MASK, aggregate, constant=8, **known))

    assert mean("token") == pytest.approx(36 / 5)
    assert mean("sequence") == pytest.approx((2 + 15) / 2)
    assert mean("sequence_sum") == pytest.approx((6 + 30) / 2)
    assert mean("constant") == pytest.approx(36 / (2 * 8))
    assert mean("batch_token_prompt") == pytest.approx(36 / 5)
    assert mean("token_and_sequence") == pytest.approx(0.5 * 36 / 5 + 0.5 * 8.5)
    known = {"group_tokens": tensor([3.0, 2.0]), "step": Step(5, 2)}  # each its own problem
    assert mean("batch_token_prompt") == pytest.approx((6 / 3 + 30 / 2) / 2)


def test_an_aggregate_says_what_it_lacks():
    for name, lacking in (("batch_token_prompt", "group_tokens"), ("token_and_sequence", "totals")):
        with pytest.raises(ValueError, match=lacking):
            weights(MASK, name)
    with pytest.raises(ValueError, match="one sequence each"):
        weights(MASK, "constant", segments=MASK.long())
