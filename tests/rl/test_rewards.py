"""Reward terms over attempts: what each adds, to whom, and what happens when one fails."""

import json
import math
import textwrap

import pytest

from etude.data import tasks
from etude.errors import EtudeError
from etude.recipe import rewards as spec
from etude.recipe.load import check
from etude.recipe.parts import Environment, Rollout
from etude.recipe.stages import Rl
from etude.rl import rewards
from etude.rl.problems import Problem
from etude.rl.rollout import Sample
from etude.text.turns import Message

SORT, TALK = Environment("sort"), Environment("instruct")
ITEM = tasks.items("sort", 0, 1, 0)[0]
PROBLEM = Problem(SORT, ITEM)


def sample(raw=0.0, tokens=4, text="", reasoning="", problems=(), ids=None, **info):
    reply = Message(reasoning, text, problems=list(problems))
    own = list(ids or range(10, 10 + tokens))
    one = Sample([1, *own], [False, *[True] * len(own)], [0.0] * (len(own) + 1), 1)
    one.replies.append(reply)
    one.end("completed", raw, **info)
    return one


def made(*terms, environments=(SORT, TALK), steps=11, **how):
    stage = Rl(environments=environments, steps=steps, rewards=terms, **how)
    said = []
    found = rewards.Rewards(stage, None, 0, count=lambda text: len(text.split()), say=said.append)
    found.said = said
    return found


def applied(terms, group, problem=PROBLEM, round=0, length=100):
    figures = rewards.apply(terms, [problem], [group], round=round, length=length)
    return [one.reward for one in group], figures


def test_without_terms_nothing_is_touched():
    group = [sample(1.0), sample(0.25)]
    assert applied(made(), group) == ([1.0, 0.25], {})
    assert group[0].terms == {}


def test_a_reward_is_the_sum_of_its_named_parts():
    terms = made(spec.Overlong(length=100, cache=20), spec.Format(weight=0.25))
    group = [sample(1.0, tokens=90), sample(0.0, problems=["no end"]), sample(1.0)]
    found, figures = applied(terms, group)
    assert found == pytest.approx([0.5, -0.25, 1.0])
    assert group[0].terms == {"rule": 1.0, "overlong": -0.5, "format": 0.0}
    assert [one.raw for one in group] == [1, 0, 1]
    assert figures["term/overlong"] == pytest.approx(-0.5 / 3)


def test_overlong_without_a_length_follows_the_window():
    terms = made(spec.Overlong(cache=10))
    assert applied(terms, [sample(1.0, tokens=45)], length=50)[0] == pytest.approx([0.5])
    assert applied(terms, [sample(1.0, tokens=45)], length=60)[0] == pytest.approx([1.0])


def test_each_kind_of_task_has_its_own_budget():
    short = spec.Budget(tokens=5, weight=0.5, only=("sort",))
    long = spec.Budget(tokens=50, only=("instruct",))
    terms = made(short, long)
    assert applied(terms, [sample(1.0, tokens=6), sample(1.0, tokens=5)])[0] == [0.5, 1.0]
    talk = Problem(TALK, tasks.items("instruct", 0, 1, 0)[0])
    assert applied(terms, [sample(1.0, tokens=6)], talk)[0] == [1.0]


def test_length_control_weighs_reasoning_and_answer_apart():
    thoughts = ["a b", "a b c d", "a b c d e f"]
    group = [sample(1.0, tokens=8, reasoning=text) for text in thoughts]
    terms = made(spec.LengthAware(think=0.3, answer=0.0, bonus_think=0.5, bonus_answer=0.0))
    # w - mean = 0.5, 0, -0.5, times 0.3; the first is the shortest, and as good as the best
    assert applied(terms, group)[0] == pytest.approx([1.65, 1.0, 0.85])
    group = [sample(1.0, tokens=8, reasoning=text) for text in thoughts]
    terms = made(spec.LengthAware(think=0.0, answer=0.35, bonus_think=0.0, bonus_answer=0.0))
    # what is left for the answer: 6, 4, 2 tokens
    assert applied(terms, group)[0] == pytest.approx([1 - 0.175, 1.0, 1 + 0.175])


def test_repetition_and_foreign_letters_cost_above_what_is_allowed():
    terms = made(spec.Repetition(tokens=2, allowed=0.5))
    assert applied(terms, [sample(1.0, ids=[7] * 9), sample(1.0)])[0] == [1 - 7 / 8, 1.0]
    terms = made(spec.LanguageMixing(weight=0.5))
    group = [sample(1.0, text="one два"), sample(1.0, text="one two"), sample(1.0, text="1 2")]
    assert applied(terms, group)[0] == [0.5, 1.0, 1.0]


def test_toggle_measures_a_budget_once_and_alternates():
    terms = made(spec.Toggle(every=2, least=0.6, quantile=0.5))

    def four():
        return [sample(1.0, tokens=n) for n in (10, 20, 30, 40)]

    assert applied(terms, four(), round=0)[0] == [1] * 4  # measured: 25
    assert applied(terms, four(), round=1)[0] == [1, 1, 0, 0]
    assert applied(terms, four(), round=2)[0] == applied(terms, four(), round=3)[0] == [1] * 4
    later = [sample(1.0, tokens=n) for n in (26, 27, 28, 29)]
    assert applied(terms, later, round=4)[0] == [0] * 4  # still 25
    other = Problem(SORT, tasks.items("sort", 0, 2, 0)[1])
    assert applied(terms, four(), other, round=5)[0] == [1] * 4  # a budget of its own, from now on
    again = made(spec.Toggle(every=2))
    again.restore(json.loads(json.dumps(terms.state())))
    assert applied(again, four(), other, round=8)[0] == [1, 1, 0, 0]


def test_toggle_by_level_shares_one_budget():
    terms = made(spec.Toggle(every=2, by="level"))
    applied(terms, [sample(1.0, tokens=10), sample(0.0, tokens=90)], round=0)
    other = Problem(SORT, tasks.items("sort", 0, 2, 0)[1])
    assert applied(terms, [sample(1.0, tokens=11), sample(1.0, tokens=10)], other)[0] == [0, 1]


def test_a_swarms_bonus_is_annealed_and_needs_what_the_environment_says():
    terms = made(spec.Parl(parallel=0.1, finish=0.2, target=4))
    told = {"launched": 3, "assigned": 3, "finished": 2}
    assert applied(terms, [sample(1.0, **told)])[0] == pytest.approx([1.208333], abs=1e-6)
    assert applied(terms, [sample(1.0, **told)], round=10)[0] == [1.0]
    idle = {"launched": 0, "assigned": 0, "finished": 0}
    assert applied(terms, [sample(1.0, **idle)])[0] == [1.0]
    with pytest.raises(EtudeError, match="sort does not say launched"):
        applied(terms, [sample(1.0)])


FUNCTIONS = """
    import math, time

    def half(attempt):
        return attempt["raw"] / 2 + len(attempt["text"])

    def moody(attempt):
        mood = attempt["text"]
        if mood == "raise":
            raise KeyError("mood")
        if mood == "hang":
            time.sleep(30)
        return {"nan": math.nan, "inf": math.inf, "text": "many"}.get(mood, 1.0)
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(textwrap.dedent(FUNCTIONS))
    monkeypatch.chdir(tmp_path)


def test_a_function_of_ones_own_is_named_by_its_path(functions):
    terms = made(spec.Function(call="own_rewards:half", weight=0.1))
    assert applied(terms, [sample(1.0, text="abc")])[0] == pytest.approx([1.35])
    terms.close()


def test_a_function_that_fails_costs_its_attempt_and_not_the_run(functions):
    terms = made(spec.Function(call="own_rewards:moody", seconds=0.3))
    moods = ["raise", "nan", "fine", "inf", "text", "hang", "fine"]
    group = [sample(0.5, text=mood) for mood in moods]
    found, figures = applied(terms, group)
    terms.close()
    assert found == [0, 0, 1.5, 0, 0, 0, 1.5]
    assert [one.status == "failed" for one in group] == [mood != "fine" for mood in moods]
    errors = [one.info.get("error", "") for one in group]
    assert "raised KeyError" in errors[0] and "returned nan" in errors[1]
    assert "no answer in 0.3 s" in errors[5] and all(e.startswith("function") for e in errors if e)
    assert figures["reward_failed"] == 5 and terms.said == ["attempts without a reward: function 5"]


def test_an_environments_reward_that_is_no_number_fails_its_attempt_too():
    group = [sample(math.nan), sample(1.0)]
    found, figures = applied(made(), group)
    assert found == [0.0, 1.0] and group[0].status == "failed"
    assert figures == {"reward_failed": 1.0}


@pytest.mark.parametrize(
    ("term", "says"),
    [
        (spec.Function(call="no_such_module:f"), "no_such_module cannot be imported"),
        (spec.Function(call="json:nothing"), "json has no function nothing"),
        (spec.Format(only=("srot",)), "no environment srot.*did you mean sort"),
    ],
)
def test_terms_that_cannot_work_are_refused_at_the_start(term, says):
    with pytest.raises(EtudeError, match=says):
        made(term)


def test_the_policy_cannot_judge_while_it_samples():
    with pytest.raises(EtudeError, match="mode one_step"):
        made(spec.Judge(), rollout=Rollout(mode="one_step"))


def recipe(**term):
    rl = {"stage": "rl", "environments": [{"name": "sort"}], "steps": 1, "rewards": [term]}
    return {"recipe": "x", "model": {"family": "glm45", "size": "mini"}, "stages": [rl]}


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ({"kind": "overlongg", "cache": 3}, "did you mean overlong"),
        ({"kind": "overlong", "cach": 3}, "did you mean rl.rewards.0.cache"),
        ({"kind": "overlong"}, "rl.rewards.0.cache: is missing"),
        ({"kind": "function", "call": "nothing"}, "rl.rewards.0.call"),
        ({"kind": "judge", "mode": "grade", "criterion": "short"}, "know the criterion right only"),
    ],
)
def test_typos_in_a_recipe_are_told_with_their_key(term, says):
    with pytest.raises(EtudeError, match=says):
        check(recipe(**term))


def test_a_written_term_names_its_environments_under_for():
    [rl] = check(recipe(kind="overlong", cache=3, **{"for": ["sort"]})).stages
    assert rl.rewards == (spec.Overlong(cache=3, only=("sort",)),)
