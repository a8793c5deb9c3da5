"""Sampling: the distribution is the stated one, and a row's draw is its own."""

import pytest
import torch

from etude.ops.sample import sample, truncate, uniform


def test_uniform_numbers_are_those_of_splitmix64():
    """By hand in Python's unbounded integers, from the published constants."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    seeds, positions = [0, 7, -3, 2**62], [0, 1, 1000, 5]
    expected = [
        ((mix((mix(s % 2**64) + p * 0x9E3779B97F4A7C15) % 2**64) >> 12) + 0.5) / 2**52
        for s, p in zip(seeds, positions, strict=True)
    ]
    assert uniform(torch.tensor(seeds), torch.tensor(positions)).tolist() == expected


def test_uniform_numbers_fill_the_unit_interval_evenly_over_seeds_and_positions():
    n = 20_000
    for u in (
        uniform(torch.arange(n), torch.full((n,), 3)),
        uniform(torch.full((n,), 3), torch.arange(n)),
    ):
        assert u.min() > 0 and u.max() < 1
        # standard error of the mean is 0.289 / sqrt(n) = 0.002, of a decile's share 0.0021
        assert u.mean().item() == pytest.approx(0.5, abs=0.008)
        assert torch.histc(u, 10, 0, 1) / n == pytest.approx(torch.full((10,), 0.1), abs=0.009)
    pairs = uniform(torch.arange(n), torch.zeros(n).long()) - 0.5
    later = uniform(torch.arange(n), torch.ones(n).long()) - 0.5
    assert (12 * (pairs * later).mean()).abs() < 0.03  # correlation, standard error 0.007


def test_samples_follow_the_temperature_scaled_distribution():
    n, logits = 30_000, torch.tensor([2.0, 1.0, 0.0, -1.0])
    tokens, logp = sample(
        logits.expand(n, 4), torch.arange(n), torch.zeros(n).long(), temperature=2.0
    )
    expected = (logits / 2).softmax(-1)
    # standard error at most 0.003
    assert torch.bincount(tokens, minlength=4) / n == pytest.approx(expected, abs=0.012)
    assert torch.equal(logp, (logits / 2).log_softmax(-1)[tokens])


def test_a_row_samples_the_same_alone_and_in_any_batch():
    logits = torch.randn(6, 50)
    seeds, positions = torch.arange(6), torch.tensor([4, 4, 9, 0, 1, 2])
    together, _ = sample(logits, seeds, positions, top_k=20, top_p=0.9)
    for row in range(6):
        one = slice(row, row + 1)
        alone, _ = sample(logits[one], seeds[one], positions[one], top_k=20, top_p=0.9)
        assert alone == together[row]


def test_temperature_zero_takes_the_largest_and_the_lowest_id_among_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0]])
    tokens, logp = sample(logits, torch.zeros(2).long(), torch.zeros(2).long(), temperature=0.0)
    assert tokens.tolist() == [1, 0]
    assert torch.equal(logp, logits.log_softmax(-1).amax(-1))


P = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_p": 0.4}, [1]),  # 0.4 itself already holds the share
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 1e-9}, [1]),
        ({"top_k": 2, "top_p": 0.6}, [1, 3]),  # of the two kept, 0.4 / 0.7 holds 0.57
        ({"top_k": 2, "top_p": 0.5}, [1]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_truncation_keeps_the_likeliest(how, kept):
    assert truncate(P, **how)[0].nonzero()[:, 0].tolist() == kept


def test_a_truncated_token_is_never_drawn_and_its_logp_is_that_of_the_whole_distribution():
    n = 2000
    logits = P.log().expand(n, 4)
    tokens, logp = sample(logits, torch.arange(n), torch.zeros(n).long(), top_k=2)
    assert set(tokens.tolist()) == {1, 3}
    torch.testing.assert_close(logp, P.log()[0][tokens])


@pytest.mark.parametrize(
    "how", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_settings_out_of_range_are_refused(how):
    with pytest.raises(ValueError, match="temperature"):
        sample(P, torch.zeros(1).long(), torch.zeros(1).long(), **how)
