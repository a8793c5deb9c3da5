"""The source of rollouts: deterministic, resumable, honest about groups without signal."""

import asyncio
import json
from types import SimpleNamespace

import pytest
import torch

from etude.errors import EtudeError
from etude.parallel.mesh import Ranks
from etude.recipe.parts import Difficulty, Environment, Grpo, Rollout, Temperature
from etude.recipe.stages import Rl
from etude.rl import agreement
from etude.rl.batch import IGNORED, micro_batches, pack
from etude.rl.local import LocalSampler
from etude.rl.objective import policy_objective
from etude.rl.reference import score
from etude.rl.rollout import Sample
from etude.rl.source import RolloutSource
from tests.rl.fakes import Scripted, model, tokenizer

ROLLOUT = {"prompts": 4, "per_prompt": 4, "max_tokens": 12}


def spec(**changes):
    rollout = Rollout(**ROLLOUT | changes.pop("rollout", {}))
    environments = changes.pop("environments", (Environment(name="rev"),))
    return Rl(environments=environments, rollout=rollout, steps=4, **changes)


def lucky(text, seed):
    """Right in about half of the attempts, and differently long."""
    word = text.rpartition("reverse: ")[2].partition("/")[0].partition("<")[0]
    right = " ".join(reversed(word.split()))
    return f"\n{right}<|user|>" if seed % 2 else "\n" + "a" * (seed % 5) + "<|user|>"


def source(rule=lucky, records=None, said=None, **changes):
    said = [] if said is None else said
    sampler = Scripted(rule) if rule else None
    how = {"sampler": sampler, "records": records, "say": said.append}
    how["ranks"] = changes.pop("ranks", Ranks())
    return RolloutSource(model(), tokenizer(), spec(**changes), 3, **how)


def rows(*lengths):
    """Attempts of one prompt token, with advantages 1, -1 and 0.5."""
    found = [Sample([3] * n, [False] + [True] * (n - 1), [-1.0] * n, 1) for n in lengths]
    for sample, worth in zip(found, (1.0, -1.0, 0.5), strict=True):
        sample.advantage = [worth * own for own in sample.mask]
    return found


def at(step):
    return SimpleNamespace(step=step, tokens=0, total=8)


def equal(one, two):
    return len(one) == len(two) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one, two, strict=True)
        for name in ("ids", "labels", "logp_old", "advantage", "segments")
    )


def test_a_step_holds_exactly_the_groups_with_signal():
    made = source()
    batches = made.next(at(0))
    seen = made.metrics()
    rows = sum(len(batch.ids) for batch in batches)
    assert rows == round(seen["mixed"] * 4) * 4 > 0
    assert seen["mixed"] + seen["all_right"] + seen["all_wrong"] == pytest.approx(1)
    for batch in batches:
        counted = batch.labels != IGNORED
        assert batch.tokens == counted.sum()
        assert (batch.advantage[~counted] == 0).all() and (batch.advantage[counted] != 0).all()


def test_the_deviation_is_widened_by_the_recipes_eps():
    plain, wide = source(), source(objective=Grpo(eps=1e9))
    for made, least, most in ((plain, 0.4, 2.0), (wide, 1e-12, 1e-8)):
        sizes = [b.advantage[b.labels != IGNORED].abs() for b in made.next(at(0))]
        assert all(least < size.min() and size.max() < most for size in sizes)


@pytest.mark.parametrize(("rule", "cause"), [("right", "all_right"), ("wrong", "all_wrong")])
def test_groups_without_signal_give_an_empty_step_and_their_cause(rule, cause):
    made = source(
        (lambda text, seed: lucky(text, 1)) if rule == "right" else lambda *_: "?<|user|>"
    )
    assert made.next(at(0)) == []
    assert made.metrics()[cause] == 1 and made.metrics()["mixed"] == 0


def test_a_labels_place_is_before_its_token_and_observations_are_not_counted():
    sample = Sample([5, 6, 7, 8, 9], [False, False, True, False, True], [0, 0, -1.0, 0, -2.0], 2)
    short = Sample([5, 6], [False, True], [0, -3.0], 1)
    sample.advantage, short.advantage = [0.5] * 5, [-0.5] * 2
    batch = pack([sample, short])
    assert batch.labels.tolist() == [[-100, 7, -100, 9, -100], [6, -100, -100, -100, -100]]
    assert batch.logp_old.tolist() == [[0, -1, 0, -2, 0], [-3, 0, 0, 0, 0]]
    assert batch.advantage.tolist() == [[0, 0.5, 0, 0.5, 0], [-0.5, 0, 0, 0, 0]]
    assert batch.segments.tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert (batch.tokens, batch.rows_tokens) == (3, 7)


def test_ranks_share_the_rows_and_run_equally_many_batches():
    samples = [Sample([1] * n, [False] + [True] * (n - 1), [0.0] * n, 1) for n in range(2, 11)]
    whole = list(micro_batches(samples, 4))
    ranks = [list(micro_batches(samples, 2, rank=r, world=2)) for r in range(2)]
    assert [len(batches) for batches in ranks] == [3, 3]
    assert sum(b.tokens for batches in ranks for b in batches) == sum(b.tokens for b in whole)


def test_several_updates_share_out_one_rounds_problems_and_its_old_probabilities():
    one, two = source(), source(rollout={"updates": 2})
    whole = one.next(at(0))
    halves = [two.next(at(0)), two.next(at(1))]
    assert two.round == 1 and "reward" not in two.metrics()
    rows = [sum(len(batch.ids) for batch in batches) for batches in (whole, *halves)]
    assert rows[0] == rows[1] + rows[2]
    assert len(two.sampler.calls) == 1


def test_a_resumed_source_goes_on_identically_also_between_two_updates():
    straight, first = source(rollout={"updates": 2}), source(rollout={"updates": 2})
    wanted = [straight.next(at(step)) for step in range(5)]
    for step in range(3):
        first.next(at(step))
    state = json.loads(json.dumps(first.state()))
    resumed = source(rollout={"updates": 2})
    resumed.restore(state)
    assert all(equal(wanted[step], resumed.next(at(step))) for step in (3, 4))


def test_engine_and_trainer_agree_on_every_sampled_token():
    """float32: measured 2e-6, probabilities far from uniform; a shift by one moves 1 and more."""
    made = source(None, rollout={"max_tokens": 24, "temperature": 0.7})
    made.next(at(0))
    assert made.metrics()["logp_gap"] < 2e-5
    assert made.recompute is False


def test_a_disagreement_is_said_and_old_probabilities_come_from_the_trainer():
    said = []
    made = source(lucky, said=said)  # the script claims -0.5 for every token
    made.next(at(0))
    assert made.recompute and "sampler and trainer disagree" in said[0]
    for batch in source(lucky).next(at(0)):
        counted = batch.labels != IGNORED
        assert (batch.logp_roll[counted] == -0.5).all() and (batch.logp_old[counted] != -0.5).all()


def test_rescoring_gives_what_the_trainer_would_say():
    samples = [Sample([5, 6, 7, 8], [False, True, True, True], [0.0] * 4, 1) for _ in range(3)]
    score(policy := model(), samples, "logp", 0.7, 2)
    assert agreement.measure(policy, samples, 0.7).largest < 1e-6


def test_the_records_of_repeated_steps_replace_the_old_ones(tmp_path):
    path = tmp_path / "rollouts/rl.jsonl"
    made = source(records=path)
    for step in range(2):
        made.next(at(step))
    state = made.state()
    made.next(at(2))
    path.write_text(path.read_text() + '{"step": 3, "cut')
    resumed = source(records=path)
    resumed.restore(state)
    resumed.next(at(2))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 8 + [1] * 8 + [2] * 8
    assert rows[0]["task"] == "rev" and "reverse" in "".join(rows[0]["pieces"])
    assert {"ids", "logp", "reward", "status", "tokens", "version"} <= rows[0].keys()


def test_a_fresh_start_drops_the_records_of_an_earlier_one(tmp_path):
    for _ in range(2):
        source(records=tmp_path / "rl.jsonl").next(at(0))
    assert len((tmp_path / "rl.jsonl").read_text().splitlines()) == 8


def test_a_sampler_given_whole_weights_leaves_the_trained_model_alone():
    trained, other = model(), model(1)
    sampler = LocalSampler(trained)
    asyncio.run(sampler.update(other.state_dict(), 3))
    assert sampler.version == 3 and sampler.model is not trained
    torch.testing.assert_close(sampler.model.head.weight, other.head.weight)
    assert not torch.equal(trained.head.weight, other.head.weight)


def test_more_updates_than_prompts_is_refused():
    with pytest.raises(EtudeError, match=r"rollout\.updates"):
        source(rollout={"updates": 5})


def test_the_hard_stage_keeps_what_only_many_tries_solve_and_survives_a_resume():
    said = []
    rule = Difficulty(keep="hard", k=2, many=40, pool=30, least=4)
    chance = lambda text, seed: lucky(text, 1 if seed % 20 == 1 else 0)  # noqa: E731
    made = source(chance, said=said, difficulty=rule)
    made.next(at(0))
    counts = made.metrics()
    kinds = ("never", "hard", "moderate", "easy")
    assert sum(counts[f"pool/{kind}"] for kind in kinds) == 30
    assert counts["pool/hard"] > 10 and said[0].startswith("difficulty hard:")
    resumed = source(chance, difficulty=rule)
    resumed.restore(made.state())
    assert equal(made.next(at(1)), resumed.next(at(1)))


def test_too_few_hard_problems_are_filled_up_and_it_is_said():
    said = []
    rule = Difficulty(keep="hard", k=4, many=8, pool=12, least=6)
    source(said=said, difficulty=rule).next(at(0))
    assert any("were added to reach 6" in text for text in said)


def test_a_stable_reward_raises_the_temperature():
    said = []
    rule = Temperature(window=3, grid=(0.8, 1.0, 1.2), problems=4, slope=1.0)
    always = lambda text, seed: lucky(text, 1)  # noqa: E731
    made = source(always, said=said, temperature=rule)
    for step in range(3):
        made.next(at(step))
    assert made.temperature == 1.0 and not any("stable" in text for text in said)
    made.next(at(3))
    assert made.temperature == made.metrics()["temperature"] == 1.2
    assert any("temperature 1 -> 1.2" in text for text in said)
    made.next(at(4))
    assert sum("stable" in text for text in said) == 1  # a new phase begins with no history


def test_the_rewards_of_a_phase_survive_a_resume():
    rule = Temperature(window=3, grid=(1.0, 1.2), problems=4, slope=1.0)
    always = lambda text, seed: lucky(text, 1)  # noqa: E731
    straight, first = (source(always, temperature=rule) for _ in range(2))
    for step in range(2):
        straight.next(at(step)), first.next(at(step))
    resumed = source(always, temperature=rule)
    resumed.restore(json.loads(json.dumps(first.state())))
    for step in range(2, 4):
        straight.next(at(step)), resumed.next(at(step))
    assert resumed.temperature == straight.temperature == 1.2


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_the_objective_does_not_depend_on_the_cut_into_micro_batches(aggregate):
    policy = model()
    objective = policy_objective(spec(objective=Grpo(aggregate=aggregate)))
    samples = rows(3, 5, 8)
    gradients = []
    for size in (1, 3):
        batches = list(micro_batches(samples, size))
        whole = sum(objective.denominator(batch) for batch in batches)
        policy.zero_grad()
        for batch in batches:
            how = {"labels": batch.labels, "segments": batch.segments, "pos": batch.pos}
            loss, _ = objective(policy(batch.ids, **how), batch)
            (loss.sum() / whole).backward()
        gradients.append(policy.norm.weight.grad.clone())
    assert whole == pytest.approx(3 if aggregate == "sequence" else 13)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("aggregate", "wanted"), [("token", -(2 - 4 + 0.5 * 7) / 13), ("sequence", -(1 - 1 + 0.5) / 3)]
)
def test_at_the_start_of_an_update_the_loss_is_the_mean_advantage(aggregate, wanted):
    """Ratio 1: every token's loss is minus its advantage; attempts have 2, 4 and 7 tokens."""
    objective = policy_objective(spec(objective=Grpo(aggregate=aggregate)))
    batch = pack(rows(3, 5, 8))
    loss, seen = objective(SimpleNamespace(logp=batch.logp_old), batch)
    assert float(loss.sum()) / objective.denominator(batch) == pytest.approx(wanted)
    assert (seen["ratio"] == 1).all()
