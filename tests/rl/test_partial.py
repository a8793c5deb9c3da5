"""Attempts that a budget cuts go on in the next round, and a resume finds them where they were."""

import json

import pytest

from etude.rl.curriculum_pace import Pace
from etude.rl.environment import Outcome, Start
from etude.rl.rounds import Rounds
from tests.rl.fakes import tokenizer
from tests.rl.test_source import at, source

HOT = Pace(temperature=1.0)


class Talk:
    """Asks `turns` times, and rewards the number of letters it was told, modulo 2."""

    changed = False

    def __init__(self, problem, turns=3):
        self.question, self.turns, self.heard = problem.item.question, turns, []

    async def start(self):
        return Start([{"role": "user", "content": self.question}], None, False)

    async def step(self, reply):
        self.heard.append(reply.content or "")
        if len(self.heard) < self.turns:
            told = f"page {len(self.heard[-1]) + self.changed}"
            return Outcome([{"role": "tool", "content": told}], done=False)
        return Outcome(reward=float(len("".join(self.heard)) % 2))


@pytest.fixture(autouse=True)
def talks(monkeypatch):
    made = lambda problem, count, box, **_: [Talk(problem) for _ in range(count)]  # noqa: E731
    monkeypatch.setattr("etude.rl.player.group", made)


def says(text, seed):
    """Goes on where it was cut with something of 1 to 24 tokens, by its seed."""
    written = text.rpartition("</think>")[2]
    return ("\n" + "ab " * (seed % 12) + "<|observation|>").removeprefix(written)


def partial(budget, rule=says, **more):
    made = source(rule, rollout={"max_tokens": 64, "partial": budget}, **more)
    made.sampler.letters = True
    return made


def sums(samples):
    return sorted((sample.reward, sample.length) for sample in samples)


def test_an_attempt_is_cut_at_its_budget_and_ends_as_if_it_had_not_been():
    """The script goes on where it was cut, so the pieces must make the whole."""
    wanted = partial(0).rounds.play(0, HOT).groups
    cut, found, rounds = partial(7), [], 0
    while len(found) < 4:
        cut.sampler.version = rounds
        played = cut.rounds.play(rounds, HOT)
        assert all(a.spent <= 7 for one in cut.rounds.pending for a in one.attempts)
        found += [group for group in played.groups if group.draw[0] == 0]
        rounds += 1
    assert rounds > 4
    texts = [
        [tokenizer().decode(sample.ids) for group in groups for sample in group.samples]
        for groups in (wanted, sorted(found, key=lambda group: group.draw))
    ]
    assert texts[0] == texts[1]
    last = max((s for group in found for s in group.samples), key=lambda sample: sample.version)
    own = [v for v, mine in zip(last.versions, last.mask, strict=True) if mine]
    assert own == sorted(own) and set(own) == set(range(rounds))


def test_a_round_keeps_as_many_problems_in_play_as_the_recipe_says():
    made = partial(20)
    for number in range(4):
        played = made.rounds.play(number, HOT)
        assert len(played.groups) + len(made.rounds.pending) == 4
        assert played.seen["pending_groups"] == len(made.rounds.pending)
    assert made.rounds.pending


def test_a_resume_goes_on_in_the_middle_of_turns_exactly():
    straight, first, resumed = partial(9), partial(9), partial(9)
    wanted = [straight.rounds.play(number, HOT) for number in range(6)]
    for number in range(3):
        first.rounds.play(number, HOT)
    assert any(a.turn for one in first.rounds.pending for a in one.attempts)
    assert any(a.sample.turns and not a.over for o in first.rounds.pending for a in o.attempts)
    assert any(a.over for one in first.rounds.pending for a in one.attempts)
    assert resumed.rounds.restore(json.loads(json.dumps(first.rounds.state()))) == 0
    for number in range(3, 6):
        again = resumed.rounds.play(number, HOT).groups
        assert [g.draw for g in again] == [g.draw for g in wanted[number].groups]
        for one, two in zip(again, wanted[number].groups, strict=True):
            assert [s.ids for s in one.samples] == [s.ids for s in two.samples]
            assert sums(one.samples) == sums(two.samples)
            assert [len(s.replies) for s in one.samples] == [len(s.replies) for s in two.samples]


def test_an_environment_that_answers_otherwise_after_a_resume_lets_its_attempt_begin_anew(
    monkeypatch,
):
    first, resumed = partial(20), partial(20)
    for number in range(2):
        first.rounds.play(number, HOT)
    open_ones = [
        a for one in first.rounds.pending for a in one.attempts if a.sample.turns and not a.over
    ]
    monkeypatch.setattr(Talk, "changed", True)
    assert resumed.rounds.restore(first.rounds.state()) == len(open_ones) > 0
    found = [a for one in resumed.rounds.pending for a in one.attempts]
    assert sum(not a.sample.ids for a in found) == len(open_ones)
    resumed.rounds.play(2, HOT)  # they are played again, in new environments
    assert all(len(a.environment.heard) == a.sample.turns for a in found if not a.over)


def test_tokens_of_older_weights_are_left_untrained_where_the_recipe_says_so():
    for older in ("keep", "mask"):
        made = source(says, rollout={"max_tokens": 64, "partial": 9, "older": older})
        made.sampler.letters, seen = True, []
        for step in range(8):
            for batch in made.next(at(step)):
                seen += [sample for sample in batch.samples if sample.oldest < sample.version]
                for sample in batch.samples:
                    own = zip(sample.versions, sample.mask, strict=True)
                    assert older == "keep" or {v for v, mine in own if mine} == {sample.version}
        assert (older == "keep") == bool(seen)


def test_the_whole_source_goes_on_identically_with_unfinished_attempts():
    straight, first, resumed = partial(9), partial(9), partial(9)
    wanted = [straight.next(at(step)) for step in range(8)]
    for step in range(4):
        first.next(at(step))
    resumed.restore(json.loads(json.dumps(first.state())))
    assert isinstance(resumed.rounds, Rounds) and resumed.rounds.pending
    for step in range(4, 8):
        found = resumed.next(at(step))
        assert [b.ids.tolist() for b in found] == [b.ids.tolist() for b in wanted[step]]
    assert any(wanted[4:])
