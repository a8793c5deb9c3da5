"""Each request's own rule: bias, penalties, cuts, and draws that depend on nothing else."""

import itertools
import math

import pytest
import torch

from etude.engine.request import GenRequest, Limits, Sampling
from etude.ops.sample import adjusted, sample, truncate
from tests.engine import helpers
from tests.engine.helpers import answers, engine, request


def test_adjustments_are_bias_then_penalties_then_bans():
    logits = torch.tensor([2.0, -2.0, 0.5, 1.0])
    made = adjusted(
        logits,
        bias={2: 1.5},
        written=[0, 0, 1],
        read=[2],
        presence=0.5,
        frequency=0.25,
        repetition=2.0,
        banned=[3],
    )
    # by hand: (2 - 0.5 - 2 * 0.25) / 2; (-2 - 0.5 - 0.25) * 2; (0.5 + 1.5) / 2; out of reach
    assert made.tolist() == [0.5, -5.5, 1.0, -math.inf]
    assert logits.tolist() == [2.0, -2.0, 0.5, 1.0]


def test_min_p_keeps_a_share_of_the_likeliest_and_rows_have_their_own_cuts():
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).repeat(4, 1)
    assert truncate(p[:1], min_p=0.4)[0].tolist() == pytest.approx([0.5, 0.3, 0, 0])
    cuts = {
        "top_k": torch.tensor([1, 0, 3, 0]),
        "top_p": torch.tensor([1.0, 0.7, 1.0, 1.0]),
        "min_p": torch.tensor([0.0, 0.0, 0.5, 0.0]),
    }
    kept = truncate(p, **cuts) > 0
    assert kept.sum(1).tolist() == [1, 2, 2, 4]


def test_a_row_draws_the_same_under_its_own_rule_in_any_company():
    torch.manual_seed(0)
    logits, seeds = torch.randn(40, 30) * 3, torch.arange(40)
    rules = itertools.cycle([(0.0, 0, 1.0), (1.0, 5, 1.0), (0.7, 0, 0.8), (1.3, 3, 0.9)])
    rules = list(itertools.islice(rules, 40))
    columns = [torch.tensor(column) for column in zip(*rules, strict=True)]
    how = dict(zip(("temperature", "top_k", "top_p"), columns, strict=True))
    tokens, logp = sample(logits, seeds, seeds + 3, **how)
    for n, (temperature, top_k, top_p) in enumerate(rules):
        row = slice(n, n + 1)
        alone = sample(
            logits[row],
            seeds[row],
            seeds[row] + 3,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        assert (tokens[row], logp[row]) == alone


def test_draws_follow_the_distribution_that_the_cuts_leave():
    """20,000 draws against the exact shares: chi-square at p = 0.001."""
    logits = torch.tensor([1.0, 0.2, -0.5, 0.7, -1.0, 0.0])
    how = {"temperature": 0.8, "top_k": 5, "top_p": 0.95, "min_p": 0.1}
    count = 20_000
    seeds = torch.arange(count)
    tokens, _ = sample(logits.repeat(count, 1), seeds, seeds % 7, **how)
    p = (logits.double() / 0.8).softmax(0)
    p[4] = 0  # the sixth, whom top-k leaves out; the others hold less than 0.95 without the fifth
    assert p[5] / p.max() > 0.1 and (p.sum() - p[2]) / p.sum() < 0.95
    due = p / p.sum() * count
    seen = tokens.bincount(minlength=6).double()
    assert seen[4] == 0
    kept = due > 0
    chi = float(((seen - due)[kept] ** 2 / due[kept]).sum())
    assert chi < 18.47  # 4 degrees of freedom


def test_penalties_and_bias_of_one_request_touch_no_other():
    model = helpers.model("glm45")
    [free] = answers(model, [request([3, 1], 40)])
    calls = [
        Sampling(0, bias={free[0]: -100.0}),
        Sampling(0, frequency=2.0, presence=2.0),
        Sampling(0, repetition=2.0),
        Sampling(0),
    ]
    requests = [GenRequest([3, 1], one, Limits(40)) for one in calls]
    biased, penalised, repeated, plain = (one.tokens for one in engine(model).run(requests))
    assert plain == free and free[0] not in biased
    assert penalised != free and repeated != free
    again = engine(model, speculate=3).run(requests)  # position by position in what is checked
    assert [one.tokens for one in again] == [biased, penalised, repeated, plain]
