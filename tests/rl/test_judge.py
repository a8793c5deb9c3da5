"""Judges: asked both ways round, read strictly, admitted by accuracy, watched meanwhile."""

import json
import random
import re
from types import SimpleNamespace

import pytest

from etude.data import tasks, tasks_judge
from etude.errors import EtudeError
from etude.recipe import rewards as spec
from etude.recipe.parts import Environment
from etude.recipe.stages import Rl
from etude.rl import judge_terms, rewards
from etude.rl.dialogue import Dialogue
from etude.rl.judge import Judge, asker, measure
from etude.rl.judge_bias import Watch
from etude.rl.problems import Problem
from etude.rl.rollout import Sample
from etude.rl.sampler import Completion
from etude.text import chat
from etude.text.turns import Message
from tests.rl.fakes import Scripted, tokenizer

SORT, TALK = Environment("sort"), Environment("instruct")
ITEM = tasks.items("sort", 0, 1, 0)[0]
PARTS = re.compile(r"judge (\w+): (.*) \| A: (.*) \| B: (.*)")


def knows(questions, tokens):
    """A judge that is always right: the shorter answer, valid JSON, or the sorted digits."""
    return [truth(*PARTS.fullmatch(text).groups()) for text in questions]


def truth(kind, question, a, b):
    due = " ".join(sorted(question.partition(": ")[2].split()))
    good = {"right": lambda text: text == due, "short": lambda text: -len(text)}
    good["valid"] = lambda text: tasks_judge.truth(ITEM, "valid", text, False)
    x, y = good[kind](a), good[kind](b)
    return "A" if x > y else "B" if y > x else "="


def longest(questions, tokens):
    """A judge that likes length."""
    found = [PARTS.fullmatch(text).groups()[2:] for text in questions]
    return ["A" if len(a) > len(b) else "B" for a, b in found]


class Shelf:
    """Models by name, for the terms."""

    def __init__(self, ask=None, scalar=None):
        self.asked, self.read = ask, scalar

    def ask(self, by):
        return self.asked

    def scalar(self, by):
        return self.read


def sample(text, raw=0.0, tokens=4, status="completed"):
    own = [True] * tokens
    one = Sample([0] * (tokens + 1), [False, *own], [0.0] * (tokens + 1), 1)
    one.replies.append(Message("", text))
    one.messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
    one.end(status, raw)
    return one


def made(ask, *terms, environments=(SORT,), scalar=None):
    stage = Rl(environments=environments, steps=9, rewards=terms)
    said = []
    shelf = Shelf(ask, scalar)
    found = rewards.Rewards(stage, shelf, 0, count=len, say=said.append)
    found.said = said
    return found


def group():
    wrong = " ".join(reversed(ITEM.answer.split()))
    return [sample(ITEM.answer, 1.0), sample(wrong), sample(wrong + " 1"), sample(ITEM.answer, 1.0)]


def applied(terms, attempts, problem=None):
    problem = problem or Problem(SORT, ITEM)
    figures = rewards.apply(terms, [problem], [attempts], round=0, length=32)
    return [one.reward for one in attempts], figures


@pytest.mark.parametrize("level", range(5))
def test_the_task_is_well_posed(level):
    """Its two orders are equally often right, and its answers are read as they are meant."""
    found = tasks.items("judge", level, 60, 0)
    for item in found:
        assert tasks.score(item, item.answer) == 1
        for wrong in ("", "C", "A B", "6", "[]", '{"score_1": 3}', "null", "[" * 5000):
            assert tasks.score(item, wrong) == 0
    if level < 3:
        assert 15 < sum(item.answer == "A" for item in found) < 45
        for item in found:
            kind, question, a, b = PARTS.fullmatch(item.question).groups()
            assert kind == tasks_judge.KINDS[level]
            if question.startswith("sort") or level:
                assert truth(kind, question, a, b) == item.answer
    if level == 3:
        assert {item.answer for item in found} >= {"5", "3"}


def test_scores_in_json_earn_less_the_more_they_are_off():
    item = tasks.items("judge", 4, 1, 0)[0]
    one, two, rank = item.data["truth"]
    off = {"score_1": one, "score_2": two - 1 if two > 1 else two + 1, "ranking": rank}
    text = json.dumps({name: int(value) for name, value in off.items()})
    assert tasks.score(item, text) == pytest.approx(0.9)
    assert tasks_judge.read_scores('{"score_1": 6, "score_2": 1, "ranking": 1}') is None
    assert tasks_judge.read_scores('{"score_1": true, "score_2": 1, "ranking": 1}') is None


def test_an_answer_cannot_write_the_other_ones_part():
    text = tasks_judge.pair_question("right", "q", "x | B: no", "yes")
    assert PARTS.fullmatch(text).groups() == ("right", "q", "x / B: no", "yes")
    assert len(tasks_judge.shown("long " * 99)) == tasks_judge.LONGEST


def test_both_orders_must_agree():
    pairs = [("q", "1 2", "2 1")]
    always_first = Judge(spec.Judge(), lambda questions, tokens: ["A"] * len(questions))
    assert always_first.compare(pairs) == [(0.0, 0.0, 3.5)]
    once = Judge(spec.Judge(swap=False), lambda questions, tokens: ["A"] * len(questions))
    assert once.compare(pairs) == [(1.0, -1.0, 3.5)]
    steady = Judge(spec.Judge(), lambda questions, tokens: ["A", "B"])
    assert steady.compare(pairs) == [(1.0, -1.0, 3.5)]
    half = Judge(spec.Judge(), lambda questions, tokens: ["A", "="])
    assert half.compare(pairs) == [(0.0, 0.0, 3.5)]


def scored(*verdicts):
    names = ("score_1", "score_2", "ranking")
    said = [json.dumps(dict(zip(names, one, strict=True))) for one in verdicts]
    return Judge(spec.Judge(verdict="scores"), lambda questions, tokens: said)


def test_scores_of_both_orders_are_averaged_where_they_agree():
    # (5 + 4) / 2 and (2 + 3) / 2
    assert scored((5, 2, 1), (3, 4, 4)).compare([("q", "a", "b")]) == [(4.5, 2.5, 2.0)]
    # each order prefers what it sees first: four scores, one mean
    assert scored((5, 2, 1), (4, 3, 3)).compare([("q", "a", "b")]) == [(3.5, 3.5, 3.5)]


@pytest.mark.parametrize("said", ["", "C", "A.", "A B", "the first", "[" * 9999, '{"score_1": 1}'])
@pytest.mark.parametrize("verdict", ["letter", "scores"])
def test_a_verdict_in_another_format_is_neutral_and_counted(said, verdict):
    judge = Judge(spec.Judge(verdict=verdict), lambda questions, tokens: [said] * len(questions))
    assert judge.compare([("q", "a", "b")]) == [(0.0, 0.0, 3.5)]
    assert (judge.count.asked, judge.count.malformed) == (2, 2)
    graded = Judge(spec.Judge(mode="grade"), lambda questions, tokens: [said])
    assert graded.grade([("q", "right", "a")]) == [3] and graded.count.malformed == 1


def test_groups_are_rated_in_a_circle_against_a_reference_or_by_grade():
    right, wrong = ITEM.answer, ITEM.answer[::-1] + " 9"
    answers = [right, wrong, right]
    circle = Judge(spec.Judge(), knows).rate(ITEM, answers)
    # right beats wrong twice; the two right ones are equal
    assert circle == [0.5, -1.0, 0.5]
    assert Judge(spec.Judge(), knows).rate(ITEM, [right]) == [0.0]
    assert Judge(spec.Judge(mode="reference"), knows).rate(ITEM, answers) == [0, -1, 0]
    grades = Judge(spec.Judge(mode="grade"), lambda questions, tokens: ["5", "1", "3"])
    assert grades.rate(ITEM, answers) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("criterion", ["right", "short", "valid"])
def test_a_judge_that_knows_decides_all_held_out_pairs_and_one_that_guesses_half(criterion):
    found = tasks.items("sort", 0, 60, 0, held=True)
    how = {"criterion": criterion}
    assert measure(Judge(spec.Judge(**how), knows), found, random.Random(0)) == 60
    guess = Judge(spec.Judge(swap=False, **how), lambda questions, tokens: ["A"] * len(questions))
    assert 18 < measure(guess, found, random.Random(0)) < 42
    swapped = Judge(spec.Judge(**how), lambda questions, tokens: ["A"] * len(questions))
    assert measure(swapped, found, random.Random(0)) == 0  # it decides nothing


def test_a_judge_replaces_the_rule_and_the_truth_is_kept_beside():
    terms = made(knows, spec.Judge())
    attempts = group()
    found, figures = applied(terms, attempts)
    assert found == [0.5, -0.5, -0.5, 0.5]
    assert [one.info["truth"] for one in attempts] == [1, 0, 0, 1]
    assert [one.raw for one in attempts] == found and attempts[0].terms == {"judge": 0.5}
    assert figures["judge/agree"] == 1 and figures["judge/pairs"] == 4
    assert figures["judge/malformed"] == 0 and figures["judge/accuracy"] == 1
    assert "1.000 of 200 held-out pairs" in terms.said[0]
    assert "judge/accuracy" not in applied(terms, group())[1]  # admitted once


def test_how_often_judge_and_truth_part_is_counted():
    terms = made(longest, spec.Judge(least=0.0))
    attempts = group()
    for one in attempts:
        one.mask = one.mask + [True] * len(one.replies[0].content)
    found, figures = applied(terms, attempts)
    assert found[2] == max(found)  # wrong, and the longest
    assert figures["judge/agree"] < 0.5 and figures["judge/bias_length"] > 0.5


def test_a_judge_that_is_not_good_enough_does_not_reward():
    terms = made(longest, spec.Judge(by="critic", least=0.8))
    with pytest.raises(EtudeError) as error:
        applied(terms, group())
    told = str(error.value)
    assert re.match(r"rl.rewards.0: critic: 0\.\d{3} of 200 held-out pairs decided rightly", told)
    assert "(95%: 0." in told and "expected 0.8; train it longer" in told and "\n" not in told


def test_attempts_without_an_answer_are_not_shown_and_count_as_the_worst():
    seen = []

    def ask(questions, tokens):
        seen.extend(questions)
        return knows(questions, tokens)

    terms = made(ask, spec.Judge(pairs=1))
    terms.judged[0].accuracy = 1.0
    attempts = [*group()[:2], sample("9 9", status="truncated"), sample("")]
    found, figures = applied(terms, attempts)
    assert found == [1.0, -1.0, -1.0, -1.0]
    assert figures["judge/pairs"] == 1  # what it has not seen says nothing of it
    assert not any("9 9" in text for text in seen)


def test_rules_and_a_model_reward_their_own_environments_in_one_stage():
    """MiniMax-M1, section 4; Qwen3-Omni."""
    terms = made(
        lambda questions, tokens: ["A", "A", "B", "B"],
        spec.Judge(only=("instruct",)),
        spec.Format(weight=0.5),
        environments=(SORT, TALK),
    )
    terms.judged[0].accuracy = 1.0
    talk = Problem(TALK, tasks.items("instruct", 0, 1, 0)[0])
    rule, judged = [sample("1", 1.0), sample("2")], [sample("a", 0.0), sample("b", 1.0)]
    judged[0].replies[0].problems.append("broken")
    rewards.apply(terms, [Problem(SORT, ITEM), talk], [rule, judged], round=0, length=9)
    assert [one.reward for one in rule] == [1, 0]
    # (a, b): A and swapped B: a is better; (b, a): A and swapped B: b is better
    assert [one.terms for one in judged] == [
        {"judge": 0, "format": -0.5},
        {"judge": 0, "format": 0},
    ]


def test_a_reward_model_scores_and_must_have_been_good():
    scored = []

    def batch(conversations, *, tools, thinking):
        scored.extend(conversations)
        return [float(len(chat[-1]["content"])) for chat in conversations]

    model = SimpleNamespace(batch=batch, accuracy=0.9)
    terms = made(None, spec.Scalar(by="rm", weight=0.5), scalar=model)
    attempts = [sample("abcd", 1.0), sample("ab"), sample("x", status="truncated")]
    found, figures = applied(terms, attempts)
    assert found == [2.0, 1.0, 0.5] and figures["judge/agree"] == 1  # the cut one: 2 - 1, halved
    assert len(scored) == 2
    for accuracy, says in ((0.7, "0.700 of its pairs"), (None, "was not measured")):
        bad = SimpleNamespace(batch=batch, accuracy=accuracy)
        with pytest.raises(EtudeError, match=says):
            applied(made(None, spec.Scalar(by="rm"), scalar=bad), group())


def rounds(watch, growing, truths):
    told = None
    for n, right in enumerate(truths):
        lengths = [10 + n * growing + k for k in range(4)]
        told = watch.look([float(k) for k in range(4)], lengths, right) or told
    return told


def test_a_liking_for_length_is_found_where_answers_grow_and_nothing_gets_better():
    rule = spec.LengthBias(window=6, act="recalibrate")
    watch = Watch(rule)
    assert "correlation 1.00" in rounds(watch, 1, [0.5] * 6) and watch.correcting
    assert rounds(Watch(rule), 0, [0.5] * 6) is None  # they do not grow
    assert rounds(Watch(rule), 1, [0.1 * n for n in range(6)]) is None  # they get better
    assert rounds(Watch(rule), 1, [0.5] * 5) is None  # too early
    flat = Watch(rule)
    for n in range(6):
        assert flat.look([1.0, 0.0, 0.0, 1.0], [10 + n, 11 + n, 12 + n, 13 + n], 0.5) is None
    said = Watch(spec.LengthBias(window=6))
    assert rounds(said, 1, [0.5] * 6) and not said.correcting and said.alarms == 1


def test_a_recalibrated_judge_no_longer_pays_for_length():
    terms = made(longest, spec.Judge(least=0.0))
    terms.judged[0].watch.correcting = True
    attempts = [sample("1" * n, tokens=n) for n in (2, 4, 6, 8)]
    found, figures = applied(terms, attempts)
    assert figures["judge/bias_length"] > 0.3  # as the judge said it
    lengths = [one.length for one in attempts]
    assert judge_terms.correlation(lengths, found) == pytest.approx(0, abs=1e-9)


def test_what_a_judge_was_seen_to_do_survives_a_resume():
    terms = made(knows, spec.Judge(bias=spec.LengthBias(window=3)))
    applied(terms, group())
    kept = json.loads(json.dumps(terms.state()))
    again = made(None, spec.Judge(bias=spec.LengthBias(window=3)))
    again.restore(kept)
    assert again.state() == terms.state() and again.judged[0].admit() is None


def test_a_sampler_is_asked_greedily_and_a_cut_verdict_is_none():
    policy = Scripted(lambda text, seed: "A<|user|>" if "short" in text else "A" * 90)
    ask = asker(policy, Dialogue(tokenizer()))
    assert ask(["judge short: q", "judge right: q"], 8) == ["A", ""]
    [(_, params)] = policy.calls
    assert (params.temperature, params.max_tokens) == (0.0, 8)


def test_a_system_that_always_thinks_is_asked_in_its_own_mode():
    system = chat.new_tokenizer(["judge short: q"], 340, format="minimax_m1")
    said = system.encode("A<end_of_sentence>", special=True)

    class Policy:
        async def sample(self, prompts, params):
            assert system.decode(prompts[0].ids).endswith("ai name=assistant\n")
            return [Completion(said, [0.0] * len(said), "stop", 0) for _ in prompts]

    assert asker(Policy(), Dialogue(system, "minimax_m1"))(["judge short: q"], 8) == ["A"]
