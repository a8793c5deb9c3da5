"""PPO's critic: what it says, how it learns, and that a stopped stage goes on with it exactly."""

import pytest
import torch

from etude.models import checkpoint
from etude.objectives import mismatch
from etude.recipe import objectives as kinds
from etude.recipe import parts
from etude.rl import credit
from etude.rl.critic import trunk
from etude.rl.objective import policy_objective
from etude.rl.reference import Scorer
from etude.rl.rollout import Sample
from etude.train.log import Log, read
from etude.train.stage import Stopped, run_stage
from tests.rl.fakes import model
from tests.rl.test_source import source, spec

ADAM = parts.AdamW(learning_rate=3e-4)


def ppo(**critic):
    return kinds.Ppo(critic=kinds.Critic(**critic))


def scorer(policy=None, **objective):
    made = objective.pop("objective", None) or ppo(**objective)
    return Scorer(policy or model(), spec(objective=made, optimizer=ADAM), seed=5)


def attempts():
    """Answers whose token tells what they will be worth."""
    made = []
    for n in range(8):
        ids = [3, 4, *[10 + n % 2] * (2 + n % 3)]
        mask = [False, False] + [True] * (len(ids) - 2)
        made.append(Sample(ids, mask, [-1.0 * own for own in mask], 2, float(n % 2)))
    return made


def test_a_new_critic_says_nothing_and_leaves_the_policy_alone():
    policy = model()
    one = scorer(policy)
    samples = attempts()
    one.fill(samples, 1.0, 3)
    assert all(len(s.value) == len(s.ids) and not any(s.value) and s.beyond == 0 for s in samples)
    assert one.critic.net.embed.weight.data_ptr() != policy.embed.weight.data_ptr()
    assert one.critic.net.head.weight.shape == (1, 32)


def test_a_value_is_said_before_its_token_and_the_last_behind_all():
    one, (sample, *_) = scorer(), attempts()
    torch.nn.init.normal_(one.critic.net.head.weight)
    one.critic.score([sample], 1)
    said = one.critic.net(torch.tensor([sample.ids]))[0, :, 0].tolist()
    assert sample.value == pytest.approx([0.0, *said[:-1]], abs=1e-5)
    assert sample.beyond == pytest.approx(said[-1], abs=1e-5)
    alone = sample.value
    one.critic.score(attempts(), 8)
    one.critic.score([sample], 1)
    assert sample.value == alone  # scoring changes nothing


def test_it_learns_what_an_answer_will_be_worth():
    one, samples, losses = (
        scorer(learning_rate=3e-3, clip=5.0, epochs=2, minibatches=2),
        attempts(),
        [],
    )
    for _ in range(8):
        one.fill(samples, 1.0, 8)
        credit.assign([samples], one.objective)
        found = one.learn(samples, 4)
        losses.append(found["critic_loss"])
    assert losses[0] == pytest.approx(0.25, abs=0.05)  # half of the mean square of 0s and 1s
    assert losses[-1] < losses[0] / 4 and found["critic_explained"] > 0.5


def test_its_gradient_does_not_depend_on_its_micro_batches():
    heads = []
    for rows in (1, 8):
        one, samples = scorer(clip=5.0), attempts()
        one.fill(samples, 1.0, 8)
        credit.assign([samples], one.objective)
        one.learn(samples, rows)
        heads.append(one.critic.optimizers.state())
    for name, moment in heads[0].items():
        torch.testing.assert_close(moment, heads[1][name], atol=1e-6, rtol=1e-4, msg=name)


def test_while_it_warms_up_the_policy_stands_still():
    one, samples = scorer(warmup=1), attempts()
    for warm in (True, False):
        one.fill(samples, 1.0, 8)
        credit.assign([samples], one.objective)
        assert one.learn(samples, 8)["critic_warmup"] == warm
        assert credit.useful(samples) is not warm


def test_its_learning_rate_is_ten_times_the_policys_unless_it_is_given():
    assert scorer().critic.optimizers.rate(1.0) == pytest.approx(3e-3)
    assert scorer(learning_rate=1e-5).critic.optimizers.rate(1.0) == 1e-5
    muon = spec(objective=ppo(), optimizer=parts.Muon(learning_rate=1.0, adam_learning_rate=1e-4))
    assert Scorer(model(), muon).critic.optimizers.rate(1.0) == pytest.approx(1e-3)


def test_only_what_an_objective_asks_for_is_kept():
    plain = scorer(objective=kinds.Grpo())
    assert plain.reference is None and plain.critic is None and plain.tensors() == {}
    assert scorer(objective=kinds.Ppo(advantage="group")).critic is None
    samples = attempts()
    assert plain.fill(samples, 1.0, 8) == {} and samples[0].old is None


def test_the_reference_keeps_the_starting_weights_and_old_follows_the_policy():
    policy = model()
    how = {"kl": {"beta": 0.1}, "correction": "tis_token"}
    one, samples = scorer(policy, objective=kinds.Grpo(**how)), attempts()
    one.fill(samples, 1.0, 3)
    assert all(s.ref == pytest.approx(s.old, abs=1e-5) for s in samples)  # nothing has trained
    before = [s.ref for s in samples]
    with torch.no_grad():
        policy.head.weight.mul_(0.5)
    seen = one.fill(samples, 1.0, 8)
    assert [s.ref for s in samples] == [pytest.approx(row, abs=1e-5) for row in before]
    assert samples[0].old != pytest.approx(samples[0].ref, abs=1e-2)
    assert seen.keys() == mismatch.figures(*[torch.zeros(1, 1)] * 2, torch.ones(1, 1).bool()).keys()
    skips = scorer(policy, objective=kinds.Grpo(correction="bypass"))
    assert skips.fill(fresh := attempts(), 1.0, 8, old=True) == {} and fresh[0].old is None


def test_another_stages_weights_are_the_reference_where_they_are_named():
    named = kinds.Grpo(kl=kinds.Kl(beta=0.1, reference="sft"))
    one, samples, other = scorer(objective=named), attempts(), model(1)
    assert one.reference is None
    one.refer(other)
    other.head.weight.data.mul_(0)  # it was copied
    one.fill(samples, 1.0, 8)
    plain = scorer(model(1), objective=kinds.Grpo(kl={"beta": 0.1}))
    plain.fill(told := attempts(), 1.0, 8)
    assert [s.ref for s in samples] == [s.ref for s in told]


def test_a_copy_of_the_trunk_has_one_output_whatever_the_policy_ties():
    for tied in (True, False):
        net = trunk(model(tie_word_embeddings=tied, num_nextn_predict_layers=1))
        assert net(torch.tensor([[1, 2, 3]])).shape == (1, 3, 1) and net.mtp is None


def stage(folder, *, stop=None):
    """Three rounds of PPO, two updates each, from the start or from where they stopped."""
    objective, said = ppo(learning_rate=3e-3, epochs=2, minibatches=2), []
    own = {"objective": objective, "optimizer": ADAM, "rollout": {"updates": 2}}
    made = source(said=said, **own)
    left = iter(range(stop - 1, -1, -1)) if stop else None
    how = {"log": Log(folder, console="quiet"), "total": 6, "unit": "steps", "save_every": 100}
    how["interrupt"] = (lambda: next(left) == 0) if left else (lambda: False)
    told = spec(**own)
    run_stage(told, made.model, made, policy_objective(told), folder / "rl", **how)
    return made


def test_ppo_trains_through_the_loop_and_a_stopped_stage_ends_in_the_same_bits(tmp_path):
    whole = stage(tmp_path / "whole")
    lines = list(read(tmp_path / "whole" / "metrics.jsonl"))
    losses = [line["critic_loss"] for line in lines if "critic_loss" in line]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert all(line["grad_norm"] > 0 for line in lines)
    with pytest.raises(Stopped):
        stage(tmp_path / "parts", stop=3)
    resumed = stage(tmp_path / "parts")
    for name, tensor in whole.tensors().items():
        assert tensor.equal(resumed.tensors()[name]), name
    ends = (checkpoint.load(tmp_path / p / "rl/checkpoint") for p in ("whole", "parts"))
    one, two = (end.state_dict() for end in ends)
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
