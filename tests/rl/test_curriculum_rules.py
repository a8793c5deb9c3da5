"""Curricula: each rule moves when its conditions hold, says so, and is resumed exactly."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.errors import EtudeError
from etude.recipe.curricula import Cooling, Curriculum, Levels, PassRate, Ramp, Windows
from etude.recipe.parts import Difficulty, Environment, Rollout, Temperature
from etude.recipe.stages import Rl
from etude.rl import curriculum_rules
from etude.rl.curriculum_pace import Pace, Seen, paced, problems, see, turns
from etude.rl.rollout import Sample

SORT = Environment("sort", levels={0: 1.0, 1: 1.0, 2: 1.0})
TALK = Environment("instruct", weight=3.0)


def stage(environments=(SORT, TALK), steps=31, rollout=None, **rules):
    more = {"rollout": rollout or Rollout(max_tokens=64)}
    own = {name: rules.pop(name) for name in ("difficulty", "temperature") if name in rules}
    curriculum = Curriculum(**rules)
    return Rl(environments=environments, steps=steps, curriculum=curriculum, **more, **own)


def made(**how):
    return curriculum_rules.Curriculum(stage(**how))


def seen(reward=0.5, perplexity=2.0, top=10.0, **solved):
    return Seen(reward, perplexity, 8.0, top, {("sort", int(k[1:])): v for k, v in solved.items()})


def test_without_rules_nothing_is_changed():
    rules = made()
    assert rules.pace(3) == Pace() and rules.observe(3, seen()) is None
    assert paced((SORT, TALK), rules.pace(3)) == (SORT, TALK)


WINDOWS = Windows(sizes=(40, 60, 80), rounds=4, change=0.01, reach=0.95)


@pytest.mark.parametrize(
    ("perplexities", "top", "opens"),
    [
        ((2.0, 2.0, 2.01, 2.0), 39, True),
        ((2.0, 2.0, 2.1, 2.1), 39, False),  # 5 % away: not converged
        ((2.0, 2.0, 2.0, 2.0), 37, False),  # below 0.95 of 40: nobody needs more
        ((2.0, 2.0, 2.0), 39, False),  # too few rounds
    ],
)
def test_a_window_opens_when_perplexity_stands_and_answers_fill_it(perplexities, top, opens):
    rules = made(windows=WINDOWS)
    told = [rules.observe(n, seen(perplexity=p, top=top)) for n, p in enumerate(perplexities)]
    assert rules.pace(9).max_tokens == (60 if opens else 40)
    assert bool(told[-1]) == opens and not any(told[:-1])
    if opens:
        assert "window 40 -> 60" in told[-1]


def test_the_next_window_looks_at_its_own_rounds_alone_and_the_last_stays():
    rules = made(windows=WINDOWS)
    sizes = []
    for n in range(20):
        rules.observe(n, seen(top=100))
        sizes.append(rules.pace(n + 1).max_tokens)
    assert sizes == [40] * 3 + [60] * 4 + [80] * 13


def test_a_ramp_grows_over_the_middle_third_and_leaves_the_inner_shares():
    other = Environment("rev", weight=1.0)
    sort = Environment("sort", weight=3.0)
    ramp = Ramp(names=("instruct",), to=0.3)
    rules = made(environments=(sort, other, TALK), ramp=ramp)
    shares = [rules.pace(n).weights for n in range(31)]
    assert [round(shares[n]["instruct"], 6) for n in (0, 10, 15, 20, 30)] == [0, 0, 0.15, 0.3, 0.3]
    for one in shares:
        assert sum(one.values()) == pytest.approx(1)
        assert one["sort"] == pytest.approx(3 * one["rev"])
    names = [one.name for one in paced((sort, other, TALK), rules.pace(0))]
    assert names == ["sort", "rev"]  # a share of 0 is not drawn
    told = {n: rules.observe(n, seen()) for n in range(31)}
    assert [n for n, text in told.items() if text] == [10, 19]


def test_the_temperature_falls_to_its_end():
    rules = made(cooling=Cooling(to=0.4, start=0, end=0.5), rollout=Rollout(temperature=1.0))
    found = [rules.pace(n).temperature for n in range(31)]
    assert found[0] == 1.0 and found[15:] == [0.4] * 16
    assert found[5] == pytest.approx(0.8)
    assert sorted(found, reverse=True) == found
    bent = made(cooling=Cooling(to=0.4, shape="cosine"), rollout=Rollout(temperature=1.0))
    # half a cosine: at a quarter of the way (1 - cos(pi / 4)) / 2 = 0.1464 of the fall
    assert bent.pace(15).temperature == pytest.approx(0.7)
    assert bent.pace(30).temperature == 0.4


def test_levels_rise_when_easy_and_fall_when_hard_after_enough_attempts():
    rules = made(levels=Levels(episodes=64, names=("sort",)))
    at = []
    easy, hard = (30, 32), (2, 32)
    for level, result in [(0, easy), (0, easy), (1, easy), (1, hard), (1, hard), (1, hard)]:
        rules.observe(0, seen(**{f"l{level}": result}))
        at.append(next(iter(rules.pace(0).levels["sort"])))
    # 60/64 up; then 32/64 stays; then 4/64 of the latest two rounds down
    assert at == [0, 1, 1, 1, 0, 0]
    assert "instruct" not in rules.pace(0).levels


def test_a_level_does_not_move_by_what_other_levels_were_solved():
    rules = made(levels=Levels(episodes=8))
    for _ in range(3):
        rules.observe(0, seen(l1=(32, 32)))
    assert rules.pace(0).levels["sort"] == {0: 1.0}


def played(rate):
    """A policy that solves level n of every problem with a given chance."""

    def play(asked, seed):
        rng = random.Random(seed)
        right = [float(rng.random() < rate[one.item.level]) for one in asked]
        return [[Sample([1, 2], [False, True], [0.0, -0.1], 1, raw=r)] for r in right]

    return play


def test_levels_follow_a_bell_from_easy_to_hard_and_environments_keep_their_shares():
    rule = PassRate(first=0.9, last=0.1, width=0.2, tries=64)
    rules = made(pass_rate=rule)
    assert rules.pace(0).levels is None
    told = rules.profile(played({0: 1.0, 1: 0.9, 2: 0.1}), 0, 7)
    assert "sort 0:1.00" in told and rules.profile(played({}), 1, 7) is None
    first, last = rules.pace(0).levels["sort"], rules.pace(30).levels["sort"]
    assert set(first) == {1, 2}  # level 0 is always solved
    assert first[1] > 0.9 and last[2] > 0.9
    drawn = [p.environment.name for p in problems((SORT, TALK), rules.pace(0), 40, 3)]
    assert (drawn.count("sort"), drawn.count("instruct")) == (10, 30)


def test_pass_rates_are_measured_again_when_the_reward_stands_still():
    rules = made(pass_rate=PassRate(window=4, tries=4))
    rules.profile(played({0: 0.5, 1: 0.5, 2: 0.5}), 0, 7)
    for n, reward in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert rules.observe(n, seen(reward=reward)) is None
    for n in range(4):
        told = rules.observe(4 + n, seen(reward=0.4))
    assert "measured again" in told
    assert rules.profile(played({0: 0.9, 1: 0.5, 2: 0.5}), 8, 7) is not None


@given(st.lists(st.floats(0.05, 9), min_size=1, max_size=5), st.integers(0, 60))
def test_turns_give_each_its_share_and_a_longer_list_begins_like_a_shorter_one(weights, count):
    order = turns(weights, count)
    assert order == turns(weights, 60)[:count]
    for at, weight in enumerate(weights):
        assert abs(order.count(at) - count * weight / sum(weights)) < len(weights)


def test_a_round_of_fixed_shares_begins_like_a_longer_one():
    pace = Pace(weights={"sort": 1.0, "instruct": 2.0}, fixed=True)
    few, many = (problems((SORT, TALK), pace, n, 5) for n in (9, 12))
    assert few == many[:9]


def test_a_round_is_seen_by_its_tokens_and_levels():
    def sample(raw, own):
        return Sample([0] * len(own), own, [-0.5 * mine for mine in own], 1, raw=raw)

    talk = [False, True, True, False, True]  # two turns, of 2 and 1 tokens
    group = [sample(1.0, talk), sample(0.0, [False, True])]
    [problem] = problems((SORT,), Pace(levels={"sort": {1: 1.0}}), 1, 0)
    found = see([problem], [group])
    assert found.solved == {("sort", 1): (1, 2)}
    assert (found.reward, found.length) == (0.5, 2.0)
    assert found.top == pytest.approx(1.99)  # 99 % of the way from 1 to 2
    assert found.perplexity == pytest.approx(2.718281828**0.5)


EVERY = {
    "windows": Windows(sizes=(20, 30, 40), rounds=3, change=0.5),
    "ramp": Ramp(names=("instruct",), to=0.5),
    "cooling": Cooling(to=0.5),
}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(0, 24), st.sampled_from(["levels", "pass_rate"]))
def test_a_resume_in_the_middle_makes_the_same_moves(seed, cut, last):
    own = {"levels": Levels(episodes=40), "pass_rate": PassRate(window=3, tries=8)}[last]
    rules, paces = made(**EVERY, **{last: own}), []
    rng = random.Random(seed)
    for n in range(25):
        if n == cut:
            kept = json.loads(json.dumps(rules.state()))
            rules = made(**EVERY, **{last: own})
            rules.restore(kept)
        told = [rules.profile(played({0: 0.9, 1: 0.5, 2: 0.2}), n, seed)]
        paces.append((rules.pace(n), told))
        levels = {f"l{k}": (rng.randint(0, 20), 20) for k in range(3)}
        told.append(rules.observe(n, seen(rng.random(), 2 + rng.random(), 39.0, **levels)))
    again, rng = made(**EVERY, **{last: own}), random.Random(seed)
    for n in range(25):
        told = [again.profile(played({0: 0.9, 1: 0.5, 2: 0.2}), n, seed)]
        assert (again.pace(n), told) == (paces[n][0], paces[n][1][:1])
        levels = {f"l{k}": (rng.randint(0, 20), 20) for k in range(3)}
        told.append(again.observe(n, seen(rng.random(), 2 + rng.random(), 39.0, **levels)))
        assert told == paces[n][1]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"ramp": Ramp(names=("sorrt",))}, "no environment sorrt.*did you mean sort"),
        ({"ramp": Ramp(names=("sort", "instruct"))}, "all environments"),
        ({"levels": Levels(names=("code",))}, "no environment code"),
        ({"levels": Levels(), "environments": (SORT, SORT)}, "two environments of one name"),
        ({"levels": Levels(), "difficulty": Difficulty(keep="hard")}, "difficulty.keep"),
        ({"cooling": Cooling(to=0.5), "temperature": Temperature()}, "one of the two"),
    ],
)
def test_rules_that_cannot_work_are_refused_in_one_line(how, says):
    with pytest.raises(EtudeError, match=says) as error:
        made(**how)
    assert "\n" not in str(error.value)


def test_bounds_in_the_wrong_order_are_refused():
    for wrong in (
        lambda: Windows(sizes=(40, 40)),
        lambda: Ramp(names=("a",), start=0.5, end=0.5),
        lambda: Cooling(to=0.5, start=1.0),
        lambda: Levels(up=0.2, down=0.8),
        lambda: Curriculum(levels=Levels(), pass_rate=PassRate()),
    ):
        with pytest.raises(ValueError, match="must|both"):
            wrong()
