"""Answers that are cut, groups that are drawn again, and why a group taught nothing."""

import asyncio
import math

import pytest
from pydantic import TypeAdapter

from etude.engine import Engine, GenRequest, Limits, Sampling, Settings, Want
from etude.engine.request import Repetition
from etude.errors import EtudeError
from etude.recipe.parts import Rollout
from etude.recipe.stages import Rl
from etude.rl.attempt import Limits as Bounds
from etude.rl.curriculum_pace import Pace
from etude.rl.environment import Outcome, Start
from etude.rl.local import LocalSampler
from etude.rl.rollout import rollouts
from etude.rl.rounds import Rounds
from etude.rl.sample import Sample
from etude.rl.summary import summarise
from tests.rl.fakes import Scripted, model, player
from tests.rl.test_source import at, lucky, source


def certain():
    """A model that is sure of its next token, whatever it has read: id 7."""
    made = model()
    made.head.weight.data.zero_()
    made.norm.weight.data.zero_()
    return made


@pytest.mark.parametrize(("tokens", "length"), [(5, 5), (30, 20)])
def test_an_answer_ends_once_so_many_tokens_in_a_row_were_certain(tokens, length):
    """Greedy decoding of a model whose logits are all equal: p = 1/320 for each token."""
    rule = Repetition(tokens, 1 / 400)
    limits = Limits(max_tokens=20, repetition=rule)
    request = GenRequest([1, 2], Sampling(0.0), limits, want=Want(logp="raw"))
    [answer] = Engine(certain(), settings=Settings(speculate=0)).run([request])
    assert (len(answer.tokens), answer.finish) == (
        length,
        "repetition" if tokens < 20 else "length",
    )
    rule = Repetition(5, 1 / 300)  # no token is that likely
    request = GenRequest([1, 2], Sampling(0.0), Limits(20, repetition=rule), want=Want(logp="raw"))
    [answer] = Engine(certain(), settings=Settings(speculate=0)).run([request])
    assert answer.finish == "length"


def test_only_tokens_in_a_row_count_towards_repetition():
    """Against a count by hand over an answer whose probabilities go up and down."""
    policy, want = model(3), Want(logp="tempered")
    settings = Settings(speculate=0)

    def ask(rule):
        limits = Limits(60, repetition=rule)
        request = GenRequest([5, 9], Sampling(0.6, seed=1), limits, want=want)
        return Engine(policy, settings=settings).run([request])[0]

    free = ask(None)
    likely = sorted(free.logp)[20:22]  # two of three tokens are above
    bound, run, ends = sum(likely) / 2, 0, {}
    for place, logp in enumerate(free.logp, 1):
        run = run + 1 if logp > bound else 0
        ends.setdefault(run, place)
    longest = max(ends)
    assert 2 < longest < sum(logp > bound for logp in free.logp)
    cut = ask(Repetition(longest, math.exp(bound)))
    assert cut.tokens == free.tokens[: ends[longest]] and cut.finish == "repetition"
    assert ask(Repetition(longest + 1, math.exp(bound))).tokens == free.tokens


def test_repetition_without_probabilities_to_count_is_refused():
    with pytest.raises(EtudeError, match="repetition"):
        GenRequest([1], limits=Limits(repetition=Repetition(5, 0.9)))


def test_a_cut_for_repetition_counts_as_an_unfinished_answer():
    made = source(
        None, rollout={"max_tokens": 20, "repetition": {"tokens": 4, "probability": 1e-3}}
    )
    made.model.head.weight.data.zero_()
    [group] = made.rounds.play(0, made._pace(0)).groups[:1]
    assert {(s.status, s.reward, s.length) for s in group.samples} == {("truncated", 0.0, 4)}
    assert all(sample.info["repetition"] for sample in group.samples)


def halting(text, seed):
    """Right, wrong, or cut before its end."""
    return "\n" + "ab" * 40 if seed % 3 == 0 else lucky(text, seed)


@pytest.mark.parametrize("truncated", ["keep", "mask"])
def test_cut_answers_are_left_out_of_the_loss_and_stay_in_the_mean(truncated):
    made = source(halting, rollout={"truncated": truncated, "max_tokens": 40, "per_prompt": 6})
    made.sampler.letters = True
    trained = [sample for batch in made.next(at(0)) for sample in batch.samples]
    assert any(s.status == "truncated" for s in trained) == (truncated == "keep")
    other = source(halting, rollout={"truncated": "keep", "max_tokens": 40, "per_prompt": 6})
    other.sampler.letters = True
    scores = {tuple(s.ids): s.advantage[-1] for batch in other.next(at(0)) for s in batch.samples}
    assert trained and all(scores[tuple(s.ids)] == s.advantage[-1] for s in trained)


def rare(text, seed):
    """Few groups have signal: a try is right once in six times."""
    return lucky(text, 1 if seed % 6 == 0 else 0)


def test_dynamic_sampling_draws_until_the_batch_is_full_of_groups_with_signal():
    how = {"prompts": 4, "per_prompt": 2}
    plain = source(rare, rollout=how)
    full = source(rare, rollout=how | {"dynamic": {"rounds": 9}})
    few = [sample for batch in plain.next(at(0)) for sample in batch.samples]
    rows = [sample for batch in full.next(at(0)) for sample in batch.samples]
    seen = full.metrics()
    assert len(few) < 8 == len(rows)
    assert 1 < seen["dynamic_rounds"] <= 9 and 0 < seen["dynamic_kept"] < 1
    assert {sample.reward for sample in rows} == {0.0, 1.0}


def test_dynamic_sampling_gives_up_after_its_rounds():
    made = source(lambda *_: "?<|user|>", rollout={"dynamic": {"rounds": 3}})
    assert made.next(at(0)) == []
    assert made.metrics()["dynamic_rounds"] == 3 and len(made.sampler.calls) == 3
    assert made.metrics()["zero_std/wrong"] == 1


def test_dynamic_sampling_keeps_what_a_model_will_reward():
    how = {"prompts": 4, "per_prompt": 2, "dynamic": {"rounds": 2}}
    made = source(lambda *_: "?<|user|>", rollout=how)
    alone = made.rounds.play(0, Pace(temperature=1.0))
    assert not any(group.useful for group in alone.groups) and len(alone.groups) == 8
    made.rounds.judged = {alone.groups[0].problem.environment.name}
    kept = made.rounds.play(0, Pace(temperature=1.0))
    assert [group.useful for group in kept.groups] == [True] * 4
    assert kept.seen == {"dynamic_rounds": 1.0, "dynamic_kept": 1.0}


def test_which_environments_a_model_rewards_is_known_before_they_are_played():
    told = {"name": "a", "steps": 1, "environments": [{"name": "sort"}, {"name": "instruct"}]}
    for only, names in (("instruct", {"instruct"}), ("", {"sort", "instruct"})):
        term = {"kind": "judge", "by": "x", **({"for": [only]} if only else {})}
        stage = TypeAdapter(Rl).validate_python(told | {"rewards": [term]})
        assert Rounds(None, stage, 0).judged == names


def test_dynamic_sampling_goes_by_rewards_before_shaping():
    made = source(lambda *_: "?<|user|>", rollout={"dynamic": {"rounds": 2}})
    play = made.rounds.play

    def shaped(*words):
        played = play(*words)
        for group in played.groups:
            for n, sample in enumerate(group.samples):
                sample.reward = sample.raw - 0.1 * n
        return played

    made.rounds.play = shaped
    assert made.next(at(0)) == []


def sample(reward, status="completed"):
    return Sample([1, 2], [False, True], [0.0, -1.0], 1, reward, status, raw=reward)


def test_groups_without_signal_are_counted_by_their_cause():
    groups = [
        [sample(1.0), sample(1.0)],
        [sample(0.0), sample(0.0, "truncated")],
        [sample(0.0, "truncated")] * 2,
        [sample(0.0, "failed")] * 2,
        [sample(0.5), sample(0.5)],
        [sample(0.0), sample(1.0)],
    ]
    problems = [source().rounds.problems(0, 0, 1, source()._pace(0))[0]] * 6
    seen = summarise(problems, groups)
    for name in ("right", "wrong", "truncated", "failed", "equal"):
        assert seen[f"zero_std/{name}"] == pytest.approx(1 / 6)
    assert seen["zero_std"] == pytest.approx(5 / 6)
    assert (seen["reward_min"], seen["reward_max"]) == (0.0, 1.0)


class Slow:
    """Its tool takes a while; then the attempt is over, or has another turn."""

    def __init__(self, seconds, turns=1, reward=1.0):
        self.seconds, self.turns, self.reward = seconds, turns, reward

    async def start(self):
        return Start([{"role": "user", "content": "?"}], None, False)

    async def step(self, reply):
        self.turns -= 1
        await asyncio.sleep(self.seconds)
        if self.turns:
            return Outcome([{"role": "tool", "content": "more"}], done=False)
        return Outcome(reward=self.reward)


@pytest.mark.parametrize("overlap", [False, True])
def test_an_attempt_with_a_slow_tool_does_not_stop_the_others(overlap):
    """Its tool answers once another attempt has had all its turns: in step that never happens."""
    over = asyncio.Event()

    class Waiting(Slow):
        async def step(self, reply):
            await over.wait()
            return await super().step(reply)

    class Last(Slow):
        async def step(self, reply):
            found = await super().step(reply)
            if not self.turns:
                over.set()
            return found

    play = player(lambda text, seed: "a<|observation|>")
    limits = Bounds(9, 999, overlap=overlap, seconds=5.0 if overlap else 0.1)
    ones = [Waiting(0.0), Last(0.0, turns=4)]
    made = rollouts(play.sampler, play.dialogue, ones, range(2), limits)
    assert [one.status for one in made] == ["completed" if overlap else "failed", "completed"]
    assert made[1].turns == 4


def test_at_its_own_pace_the_engine_gives_every_attempt_what_it_gives_it_alone():
    policy, talk = model(), player(lambda *_: "").dialogue
    ones = lambda: [Slow(0.02 * (n % 3), turns=1 + n % 3) for n in range(6)]  # noqa: E731
    found = {}
    for overlap in (False, True):
        sampler = LocalSampler(policy, overlap=overlap)
        limits = Bounds(12, 999, overlap=overlap)
        found[overlap] = rollouts(sampler, talk, ones(), range(6), limits)
    for one, two in zip(found[False], found[True], strict=True):
        assert one.ids == two.ids and one.versions == two.versions
        assert one.logp == pytest.approx(two.logp, abs=1e-5)


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (Slow(9.0), "no answer of the environment in 0.05 s"),
        (Slow(0.0, reward=float("nan")), "a reward of nan"),
        (Slow(0.0, reward=float("inf")), "a reward of inf"),
        (Slow(0.0, reward="much"), "TypeError"),
    ],
)
def test_a_reward_that_is_late_or_no_number_costs_its_own_attempt_only(one, word):
    play = player(lambda text, seed: "a<|user|>")
    limits = Bounds(9, 999, seconds=0.05)
    bad, good = rollouts(play.sampler, play.dialogue, [one, Slow(0.0)], [0, 1], limits)
    assert (bad.status, bad.reward, bad.raw) == ("failed", 0.0, 0.0) and word in bad.info["error"]
    assert (good.status, good.reward) == ("completed", 1.0)


def test_an_environment_that_cannot_start_fails_and_trains_nothing(monkeypatch):
    class Broken(Slow):
        async def start(self):
            raise OSError("no room")

    def group(problem, count, box, **_):
        return [Slow(0.0, reward=float(n)) for n in range(count - 1)] + [Broken(0.0)]

    monkeypatch.setattr("etude.rl.player.group", group)
    said = []
    made = source(lambda text, seed: "a<|user|>", said=said)
    rows = [sample for batch in made.next(at(0)) for sample in batch.samples]
    assert len(rows) == 12 and made.metrics()["failed"] == 0.25
    assert any("4 attempts failed: OSError: no room" in text for text in said)


def test_modes_that_contradict_each_other_are_refused():
    for how in ({"partial": 4, "mode": "async"}, {"partial": 4, "dynamic": {"rounds": 2}}):
        with pytest.raises(ValueError, match="partial rollouts"):
            Rollout(**how)


def test_a_samplers_word_for_repetition_ends_the_attempt():
    class Cut(Scripted):
        async def sample(self, prompts, params):
            made = await super().sample(prompts, params)
            for one in made:
                object.__setattr__(one, "finish", "repetition")
            return made

    talk = player(lambda *_: "").dialogue
    [made] = rollouts(Cut(lambda *_: "a a a"), talk, [Slow(0.0)], [0], Bounds(9, 99))
    assert (made.status, made.info["repetition"]) == ("truncated", True)
