"""One step ahead and beside training: which weights sample what, and what a resume keeps."""

import json
import threading
import time
from dataclasses import replace

import pytest
import torch

from etude.errors import EtudeError
from etude.parallel.mesh import Ranks
from etude.recipe.parts import Temperature
from etude.rl.buffer import Buffer
from etude.rl.curriculum_pace import Pace
from etude.rl.rounds import Group, Round
from etude.rl.sample import Sample
from tests.rl.test_partial import Talk
from tests.rl.test_source import at, equal, source

FAR = {"max_tokens": 12, "mode": "one_step"}


def versions(batches):
    return {sample.version for batch in batches for sample in batch.samples}


def closed(made, steps, *, first=0):
    """Run steps, then end what runs beside."""
    try:
        return [made.next(at(step)) for step in range(first, first + steps)]
    finally:
        made.close()


def test_one_step_ahead_a_round_is_sampled_with_the_weights_from_before_the_last_update():
    found = [versions(batches) for batches in closed(source(rollout=FAR), 4)]
    assert found == [{0}, {0}, {1}, {2}]
    sync = [versions(batches) for batches in closed(source(), 4)]
    assert sync == [{0}, {1}, {2}, {3}]


def test_one_step_ahead_the_age_of_what_trains_is_logged():
    made = source(rollout=FAR)
    made.next(at(0))
    assert made.metrics()["age"] == made.metrics()["age_max"] == 0
    made.next(at(1))
    made.close()
    assert made.metrics()["age"] == made.metrics()["age_max"] == 1


def test_one_step_ahead_samples_a_copy_that_training_cannot_reach():
    """Round 1 is sampled before update 0: what training then does to the model is unseen."""
    quiet, moved = source(None, rollout=FAR), source(None, rollout=FAR)
    ids = []
    for made, noise in ((quiet, 0.0), (moved, 0.5)):
        made.next(at(0))
        with torch.no_grad():
            for weight in made.model.parameters():
                weight.add_(noise * torch.randn_like(weight))
        ahead = made.supply._ahead.result()
        ids.append([sample.ids for group in ahead.groups for sample in group.samples])
        made.close()
    assert ids[0] == ids[1]


def test_one_step_ahead_goes_on_identically_after_a_resume():
    straight, first, resumed = (source(rollout=FAR) for _ in range(3))
    wanted = closed(straight, 4)
    for step in range(2):
        first.next(at(step))
    resumed.restore(json.loads(json.dumps(first.state())))
    first.close()
    for batches, again in zip(wanted[2:], closed(resumed, 2, first=2), strict=True):
        assert equal(batches, again) and batches


def test_an_interrupt_in_the_middle_of_sampling_and_a_resume_change_no_bit():
    """The second round's second pass is interrupted; the state is that of the step before."""

    class Odd(Talk):
        async def step(self, reply):
            outcome = await super().step(reply)
            return replace(outcome, reward=float(len(str(reply)) % 2))

    straight, first, resumed = (source(None, rollout={"max_tokens": 12}) for _ in range(3))
    for made in (straight, first, resumed):
        made.player.group = lambda problem, count, box, **_: [Odd(problem, 2) for _ in range(count)]
        with torch.no_grad():  # turns end before their limit
            made.model.head.weight[sorted(made.player.dialogue.stop)] += 1.0
    wanted = [straight.next(at(step)) for step in range(2)]
    found = [first.next(at(0))]
    state, sample = json.dumps(first.state()), first.sampler.sample

    async def interrupted(prompts, params):
        if len(prompts) < 16:
            raise KeyboardInterrupt
        return await sample(prompts, params)

    first.sampler.sample = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.next(at(1))
    first.close()
    resumed.restore(json.loads(state))
    found.append(resumed.next(at(1)))
    assert any(wanted)
    assert all(equal(one, two) for one, two in zip(wanted, found, strict=True))


def group(version, place=0):
    sample = Sample([1, 2], [False, True], [0.0, -1.0], 1, version=version)
    return Group(None, (0, 0, place), Pace(), [sample])


def test_a_buffer_drops_what_is_too_old_and_counts_it():
    buffer = Buffer(capacity=4, max_age=1)
    groups = [group(version, place) for place, version in enumerate((0, 1, 1, 2))]
    buffer.put(Round(0, 1.0, groups))
    taken = buffer.take(2, step=2)
    assert [one.draw[2] for one in taken] == [1, 2]
    assert buffer.dropped == 1 and [one.draw[2] for one in buffer.groups] == [3]


def test_the_age_of_a_sample_is_that_of_its_oldest_token():
    mixed = Sample([1, 2, 3, 4], [False, True, False, True], [0.0] * 4, 1, version=5)
    mixed.versions = [-1, 3, -1, 5]
    assert mixed.oldest == 3


def test_whoever_samples_waits_while_the_buffer_is_full_and_goes_on_when_it_is_not():
    buffer, went = Buffer(capacity=1, max_age=9), threading.Event()
    buffer.put(Round(0, 1.0, [group(0)]))
    job = threading.Thread(target=lambda: (buffer.wait(), went.set()))
    job.start()
    assert not went.wait(0.1)
    buffer.take(1, step=0)
    assert went.wait(5)
    job.join()


def test_what_ends_the_sampling_reaches_the_trainer():
    buffer = Buffer(capacity=1, max_age=1)
    buffer.fail(EtudeError("server", "is gone"))
    with pytest.raises(EtudeError, match="is gone"):
        buffer.take(1, step=0)


@pytest.mark.parametrize("rule", ["script", None])
def test_beside_training_nothing_is_older_than_allowed_lost_or_taken_twice(rule):
    how = {"rollout": {"mode": "async", "max_age": 2, "max_tokens": 6}}
    made = source(**how) if rule else source(None, **how)
    played = []
    play = made.rounds.play
    made.rounds.play = lambda *words: played.append(play(*words)) or played[-1]
    taken, take = [], made.supply.take
    made.supply.take = lambda *words: taken.append(take(*words)) or taken[-1]
    for step in range(4):
        made.next(at(step))
        assert made.metrics()["age_max"] <= 2
    made.close()
    order = [one.draw for part in played for one in part.groups]
    mine = [one.draw for part in taken for one in part.groups]
    rest = [one.draw for one in made.supply.buffer.groups]
    assert len(mine) == 16 and len(set(mine)) == 16
    assert len(mine) + made.supply.buffer.dropped + len(rest) == len(order)
    assert not set(mine) & set(rest)


def test_beside_training_a_resume_takes_what_was_sampled_and_plays_the_round_under_way_again():
    how = {"rollout": {"mode": "async", "max_age": 9}}
    made = source(**how)
    made.next(at(0))
    made.close()
    state = json.loads(json.dumps(made.state()))
    left = [one.draw for one in made.supply.buffer.groups]
    resumed = source(**how)
    resumed.restore(state)
    assert [one.draw for one in resumed.supply.buffer.groups] == left
    assert resumed.supply.buffer.next == made.supply.buffer.next
    taken, take = [], resumed.supply.take
    resumed.supply.take = lambda *words: taken.append(take(*words)) or taken[-1]
    resumed.next(at(1))
    resumed.next(at(2))
    resumed.close()
    mine = [one.draw for part in taken for one in part.groups]
    assert mine[: len(left)] == left[: len(mine)]
    assert {round for round, _, _ in mine} == {1, 2}  # round 0 was trained on; none is left out


def test_new_weights_reach_answers_under_way_and_each_token_knows_its_own():
    """An answer of 60 tokens: weights that are posted after some of them sample the rest."""
    made = source(None, rollout={"mode": "async", "max_tokens": 60, "prompts": 1, "per_prompt": 2})
    sampler, seen = made.sampler, []
    sampler.version, step = 3, sampler._stream._settle

    def settle():
        engine = step()
        seen.append(sampler.version)
        if len(seen) == 20:
            sampler.post({k: v.clone() for k, v in made.model.state_dict().items()}, 4)
        return engine

    sampler._stream._settle = settle
    [group] = made.rounds.play(0, Pace(temperature=1.0)).groups
    made.close()
    longest = max(group.samples, key=lambda sample: sample.length)
    own = [v for v, mine in zip(longest.versions, longest.mask, strict=True) if mine]
    assert longest.length > 30 and set(own) == {3, 4} and own == sorted(own)
    assert (longest.version, longest.oldest) == (4, 3)


@pytest.mark.parametrize("mode", ["one_step", "async"])
def test_a_sampler_that_fails_ends_the_run_with_its_own_words(mode):
    def broken(text, seed):
        raise EtudeError("server", "is gone")

    made = source(broken, rollout={"mode": mode})
    with pytest.raises(EtudeError, match="is gone"):
        made.next(at(0))
    made.close()


@pytest.mark.parametrize(
    ("rollout", "more"),
    [
        ({"mode": "async"}, {"ranks": Ranks(0, 2)}),
        ({"partial": 8}, {"ranks": Ranks(0, 2)}),
        ({"mode": "async"}, {"temperature": Temperature()}),
        ({"routes": True}, {"model": "dense"}),
    ],
)
def test_what_does_not_go_together_is_refused(rollout, more, monkeypatch):
    if more.pop("model", None):
        dense = source().model
        dense.routers = lambda: iter(())
        monkeypatch.setattr("tests.rl.test_source.model", lambda: dense)
    with pytest.raises(EtudeError, match="rollout"):
        source(rollout=rollout, **more)


def test_closing_does_not_wait_for_a_full_buffer():
    made = source(rollout={"mode": "async", "max_age": 1})
    made.next(at(0))
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 5 and not made.supply._thread.is_alive()
