"""Rewards become advantages per token, and what cannot be compared is refused."""

import math
from dataclasses import replace

import pytest
import torch

from etude.errors import EtudeError
from etude.recipe import objectives as kinds
from etude.rl import credit
from etude.rl.rollout import Sample


def sample(length, reward, **more):
    """One prompt token, then the policy's."""
    ids, mask = [1] * (length + 1), [False] + [True] * length
    return Sample(ids, mask, [0.0, *[-1.0] * length], 1, reward, **more)


def group(*rewards, **more):
    return [sample(2, reward, **more) for reward in rewards]


def scores(groups, spec):
    seen = credit.assign(groups, spec)
    return [one.advantage for group in groups for one in group], seen


def test_the_groups_reward_stands_on_every_token_of_the_policy():
    two = [Sample([1, 5, 6, 7], [False, True, False, True], [0.0] * 4, 1, r) for r in (1.0, 0.0)]
    found, seen = scores([two], kinds.Grpo())
    assert found[0] == pytest.approx([0, 0.7071058, 0, 0.7071058])
    assert found[1] == pytest.approx([0, -0.7071058, 0, -0.7071058])
    assert seen["advantage"] == pytest.approx(0, abs=1e-6)
    assert seen["advantage_std"] == pytest.approx(0.7071058)


NAMED = {
    "group": 0.707007,
    "group_centre": 0.5,
    "group_mean_batch_std": 0.5 / (math.sqrt(4 * 0.25 / 3) + 1e-4),
    "leave_one_out": 1.0,
    "reinforce_pp_baseline": math.sqrt(7 / 8),  # 8 tokens of +-0.5, n - 1
    "reinforce_pp": math.sqrt(7 / 8),
}


@pytest.mark.parametrize("name", NAMED)
def test_every_estimator_can_be_named_in_any_objective(name):
    spec = kinds.Dapo(advantage=name)
    assert spec.estimator.kind == name
    groups = [group(1.0, 0.0), group(1.0, 0.0)]
    found, _ = scores(groups, spec)
    assert found[0][1:] == pytest.approx([NAMED[name]] * 2, abs=1e-5)
    assert found[1][1:] == pytest.approx([-NAMED[name]] * 2, abs=1e-5)
    assert found[0][0] == 0
    assert all(credit.useful(group) for group in groups)


def test_equal_rewards_teach_nothing_in_a_group_and_something_without_one():
    flat, mixed = group(1.0, 1.0), group(1.0, 0.0)
    credit.assign([flat, mixed], kinds.Grpo())
    assert not credit.useful(flat) and credit.useful(mixed)
    credit.assign([flat, mixed], kinds.ReinforcePp())
    assert credit.useful(flat)


def test_named_rewards_are_normalised_apart():
    two = [sample(1, 1.0, terms={"right": 1.0}), sample(1, 0.1, terms={"brief": 0.1})]
    even = {"kind": "decoupled", "weights": {"brief": 1.0}, "eps": 1e-9}
    found, _ = scores([[*two, sample(1, 0.0)]], kinds.Grpo(advantage=even))
    assert found[0][1] == pytest.approx(found[1][1]) and found[2][1] < 0 < found[0][1]
    weighed = kinds.Grpo(advantage={"kind": "decoupled", "weights": {"right": 3.0}})
    found, _ = scores([two], weighed)
    assert found[0][1] > 0.7
    wrong = kinds.Grpo(advantage={"kind": "decoupled", "weights": {"shrot": 3.0}})
    with pytest.raises(EtudeError, match="no reward part shrot; known: brief, right"):
        credit.assign([two], wrong)


K1 = [[0.5, -0.5], [1.0, 0, 0], [2.0], [0, 1.0]]


def penalised():
    """Example E20: answers of 2, 3, 1 and 2 tokens whose log-ratios to the reference are K1."""
    made = [sample(len(k1), won) for k1, won in zip(K1, (1.0, 0.0, 1.0, 0.0), strict=True)]
    for one, k1 in zip(made, K1, strict=True):
        one.ref = [0.0, *(-1.0 - k for k in k1)]
    return [made[:2], made[2:]]


def test_a_kl_term_in_the_reward_is_taken_off_each_token_of_a_return():
    spec = kinds.ReinforcePp(kl={"beta": 0.1, "into": "reward"})
    found, seen = scores(penalised(), spec)
    flat = [x for row in found for x in row[1:]]
    wanted = [1.287544, 1.382043, -0.791426, -0.602429, -0.602429, 0.909550, -0.791426, -0.791426]
    assert flat == pytest.approx(wanted, abs=1e-5)  # float32
    assert seen["kl_reward"] == pytest.approx(0.1 * 4 / 8)


def test_and_off_the_whole_answer_where_answers_are_compared():
    spec = kinds.Grpo(std=False, kl={"beta": 0.1, "into": "reward"})
    found, _ = scores(penalised(), spec)
    assert found[0][1] == pytest.approx((1.0 - (0 - 0.1)) / 2)
    assert found[2][1] == pytest.approx((0.8 - (0 - 0.1)) / 2)


def test_gae_uses_the_critic_and_what_it_says_behind_an_answer_that_was_cut():
    plain = {"whiten": False, "bootstrap": True}
    spec = kinds.Ppo(advantage={"kind": "gae"} | plain)
    cut = sample(2, 0.0, value=[0.0, 0.2, 0.4], beyond=0.8, status="truncated")
    done = replace(cut, status="completed")
    found, _ = scores([[cut], [done]], spec)
    assert found[0] == pytest.approx([0, 0.6, 0.4]) and found[1] == pytest.approx([0, -0.2, -0.4])
    assert cut.returns == pytest.approx([0, 0.8, 0.8])
    found, _ = scores([[cut], [done]], kinds.Ppo(advantage={"kind": "gae", "whiten": False}))
    assert found[0] == found[1]
    credit.assign([[cut], [done]], kinds.Ppo())
    tokens = torch.tensor([x for one in (cut, done) for x in one.advantage[1:]])
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-6)
    assert float(tokens.std()) == pytest.approx(1)


def test_what_cannot_be_scored_is_said_in_one_line():
    with pytest.raises(EtudeError, match="reward is nan"):
        credit.assign([group(1.0, math.nan)], kinds.Grpo())
    with pytest.raises(EtudeError, match="style is inf"):
        credit.assign([group(1.0, 0.0, terms={"style": math.inf})], kinds.Grpo())
    with pytest.raises(EtudeError, match="1 answer, but group compares the answers to one problem"):
        credit.assign([group(1.0)], kinds.Grpo())
    credit.assign([group(1.0), group(0.0)], kinds.ReinforcePp())
    with pytest.raises(EtudeError, match="no critic has scored"):
        credit.assign([group(1.0, 0.0)], kinds.Ppo())
    with pytest.raises(EtudeError, match="no reference has scored"):
        credit.assign([group(1.0, 0.0)], kinds.Grpo(kl={"beta": 1, "into": "reward"}))
    with pytest.raises(EtudeError, match="groups of 2, 3 answers"):
        credit.assign([group(1.0, 0.0), group(1.0, 0.0, 0.0)], kinds.Dapo())


def test_an_answer_without_a_trained_token_needs_no_score():
    blank = Sample([1, 2], [False, False], [0.0, 0.0], 1, 1.0)
    spec = kinds.Ppo(kl={"beta": 0.1, "into": "reward"})
    scored = sample(1, 0.0, value=[0.0, 0.5], ref=[0.0, -1.0])
    credit.assign([[blank, scored]], spec)
    assert blank.advantage == [0.0, 0.0]
