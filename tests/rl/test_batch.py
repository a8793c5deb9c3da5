"""Micro-batches carry what each row's loss needs of its own sample, and of the whole step."""

import torch

from etude.rl.batch import micro_batches, pack, totals
from etude.rl.rollout import Sample


def sample(prompt, length, **more):
    """An attempt whose prompt is its problem's number."""
    ids = [prompt] * 2 + [9] * length
    return Sample(ids, [False] * 2 + [True] * length, [0.0] * 2 + [-1.0] * length, 2, **more)


def test_each_value_stands_before_its_token():
    full = {
        "old": [0, 0, -2.0],
        "ref": [0, 0, -3.0],
        "value": [7.0, 8.0, 0.5],
        "returns": [0, 0, 1.0],
    }
    batch = pack([sample(1, 1, advantage=[0, 0, 0.25], **full)])
    assert batch.labels.tolist() == [[-100, 9, -100]]
    assert batch.logp_roll.tolist() == [[0, -1, 0]] and batch.logp_old.tolist() == [[0, -2, 0]]
    assert batch.ref.tolist() == [[0, -3, 0]] and batch.advantage.tolist() == [[0, 0.25, 0]]
    assert batch.value.tolist() == [[0, 0.5, 0]] and batch.returns.tolist() == [[0, 1, 0]]


def test_the_samplers_probabilities_stand_for_the_trainers_where_they_agreed():
    batch = pack([sample(1, 1), sample(1, 2, old=[0, 0, -2.0, -3.0])])
    assert batch.logp_old.tolist() == [[0, -1, 0, 0], [0, -2, -3, 0]]
    assert batch.ref is None and batch.value is None and not batch.advantage.any()


def test_the_totals_are_those_of_the_step_in_every_piece_of_it():
    attempts = [sample(1, 2), sample(1, 3), sample(2, 4), sample(2, 0)]
    assert totals(attempts).step.tokens == 9 and totals(attempts).step.sequences == 3
    pieces = list(micro_batches(attempts, 1))
    assert [float(b.group_tokens) for b in pieces] == [4, 5, 5, 4]  # the shortest first
    assert {b.step for b in pieces} == {totals(attempts).step}
    assert all(b.real.all() for b in pieces)


def test_a_row_that_keeps_ranks_in_step_is_no_sequence_and_is_not_recorded():
    ranks = [list(micro_batches([sample(1, 2, key="a")], 2, rank=r, world=2)) for r in range(2)]
    (own,), (other,) = ranks
    assert own.real.tolist() == [True] and other.real.tolist() == [False]
    assert own.samples[0].key == "a" and other.samples[0].key == ""
    assert other.tokens == 0 and other.step == own.step


def test_chosen_experts_stay_with_the_token_that_chose_them():
    routed = sample(1, 1, routes=torch.ones(3, 2, 1, dtype=torch.int16))
    batch = pack([routed, sample(1, 2)])
    assert batch.routes.shape == (2, 4, 2, 1)
    assert (batch.routes[0, :3] == 1).all() and (batch.routes[0, 3] == -1).all()
    assert (batch.routes[1] == -1).all()
