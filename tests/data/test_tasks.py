"""Task families: right answers score 1, wrong ones 0; wording and levels are fixed."""

import random
import re
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import tasks_code, tasks_python
from etude.data.tasks import FAMILIES, THINKING_FAMILIES, draw, family, held_out, items, score
from etude.data.tasks_instruct import rules_kept
from etude.data.tasks_python import PythonError, call
from etude.errors import EtudeError

OWN = ("sum", "var", "rev", "sort", "recall", "calc", "lookup", "instruct", "code")
EVERY = [(name, level) for name in OWN for level in range(FAMILIES[name].levels)]


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_the_worked_answer_scores_one_and_others_score_zero(name, level):
    for item in items(name, level, 20, 0):
        assert (item.family, item.level) == (name, level)
        assert score(item, item.answer) == 1.0
        assert score(item, SimpleNamespace(content=f"\n{item.answer}\n")) == 1.0
        assert score(item, f"<think>{item.steps}</think>\n{item.answer}") == 1.0
        for wrong in (
            "",
            "9 no",
            item.answer + " 7?",
            item.answer[:-1] + "#",
            f"<think>{item.answer}</think>",
        ):
            assert score(item, wrong) == 0.0


@pytest.mark.parametrize(("name", "level"), EVERY)
def test_questions_depend_on_the_seed_alone_and_the_sides_of_the_split_are_disjoint(name, level):
    train, test = items(name, level, 40, 3), items(name, level, 40, 3, held=True)
    assert train == items(name, level, 40, 3) != items(name, level, 40, 4)
    assert all(held_out(item) for item in test) and not any(held_out(item) for item in train)
    assert not {item.question for item in train} & {item.question for item in test}


@pytest.mark.parametrize("name", OWN)
def test_about_one_question_in_five_is_held_out(name):
    rng, hits, questions = random.Random(0), 0, set()
    top = FAMILIES[name].levels - 1
    while len(questions) < 600:
        item = FAMILIES[name].sample(rng, top)
        if item.question not in questions:
            questions.add(item.question)
            hits += held_out(item)
    assert 0.13 < hits / 600 < 0.28  # s.e. 0.016 for independent questions


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("sum", r"\d([+-]\d)+\?"),
        ("var", r"([a-z]=([a-z][+-])?\d )+[a-z]\?"),
        ("rev", r"reverse:( [a-z])+"),
        ("sort", r"sort:( \d)+"),
        ("recall", r"recall:( [a-z]\d)+ [a-z]\?"),
        ("lookup", r"find the word of page \d{3}"),
    ],
)
def test_questions_keep_their_wording(name, pattern):
    for level in range(FAMILIES[name].levels):
        assert all(re.fullmatch(pattern, item.question) for item in items(name, level, 20, 0))


def test_levels_have_the_sizes_that_were_found_to_learn():
    def sizes(name, count):
        return [
            {count(i) for i in items(name, level, 40, 0)} for level in range(FAMILIES[name].levels)
        ]

    assert sizes("sum", lambda i: len(re.findall(r"\d", i.question))) == [{3}, {4}, {6}]
    assert sizes("var", lambda i: i.question.count("=")) == [{2}, {3}, {5}]
    assert sizes("rev", lambda i: len(i.answer.split())) == [{3, 4}, {5}, {6, 7}]
    assert sizes("sort", lambda i: len(i.answer.split())) == [{4}, {6}, {8}, {10}]
    assert sizes("recall", lambda i: len(i.data["values"])) == [{2}, {4}, {8}]
    assert sizes("lookup", lambda i: len(i.calls)) == [{1}, {2}, {3}, {4}]
    assert sizes("calc", lambda i: len(re.findall(r"\d", i.calls[0].arguments["expression"]))) == [
        {4},
        {6},
        {8},
    ]


@pytest.mark.parametrize("name", THINKING_FAMILIES)
def test_written_steps_are_true_and_end_in_the_answer(name):
    for level in range(FAMILIES[name].levels):
        for item in items(name, level, 40, 1):
            for step in item.steps.split():
                *_, claim, value = step.split("=")
                assert eval(claim) == int(value) if not claim.isalpha() else True
            assert item.steps.split("=")[-1] == item.answer


def test_the_order_of_assignments_does_not_say_the_order_of_the_trace():
    found = items("var", 2, 200, 0)
    first = [i.question.startswith(i.steps.split()[0] + " ") for i in found]
    assert 0.1 < sum(first) / len(first) < 0.3  # one in five by chance


@pytest.mark.parametrize("name", ["calc", "lookup"])
def test_the_worked_calls_get_their_recorded_results_from_the_real_tool(name):
    for level in range(FAMILIES[name].levels):
        for item in items(name, level, 20, 0):
            tools = {tool.name: tool for tool in item.toolset()}
            for one in item.calls:
                assert tools[one.name].call(**one.arguments) == one.result
            assert item.answer in item.calls[-1].result


def test_a_page_leads_only_to_the_next_one():
    for item in items("lookup", 3, 20, 0):
        for before, after in zip(item.calls, item.calls[1:], strict=False):
            assert before.result == f"see page {after.arguments['page']}"


@pytest.mark.parametrize(
    ("question", "good", "bad"),
    [
        (r"write (\w+) (\d) times$", lambda m: " ".join([m[1]] * int(m[2])), lambda m: m[1]),
        (
            r"answer with exactly (\d) different words$",
            lambda m: " ".join("abcdef"[: int(m[1])]),
            lambda m: "a a a",
        ),
        (
            r"answer with words that start with (\w)$",
            lambda m: f"{m[1]}x {m[1]}y",
            lambda m: f"{m[1]}x q1",
        ),
    ],
)
def test_rules_accept_any_reply_that_keeps_them(question, good, bad):
    found = [(i, m) for i in items("instruct", 0, 300, 0) if (m := re.match(question, i.question))]
    assert found
    for item, match in found:
        assert score(item, good(match)) == 1.0
        assert score(item, bad(match)) == 0.0


def test_every_demand_on_form_is_checked():
    item = next(
        i
        for i in items("instruct", 2, 500, 0)
        if "capitals" in i.question and "commas" in i.question
    )
    assert all(rules_kept(item, item.answer))
    assert not score(item, item.answer.lower())
    assert not score(item, item.answer.replace(",", ""))
    assert not score(item, item.answer.replace(", ", ","))


def test_code_is_right_if_it_computes_the_same_however_it_is_written():
    item = next(i for i in items("code", 2, 200, 0) if "the sum of xs above" in i.question)
    at = item.question.split()[-1]
    body = f"    t = 0\n    for x in xs:\n        if x > {at}:\n            t += x\n    return t\n"
    loop = f"```python\ndef f(xs):\n{body}```"
    assert score(item, loop) == 1.0
    assert score(item, loop.replace(">", "<")) == 0.0
    assert score(item, "def f(xs):\n    return") == 0.0
    assert score(item, "def g(xs):\n    return 1") == 0.0


HOSTILE = [
    "import os",
    "def f(x):\n    return __import__('os')",
    "def f(x):\n    return x.__class__",
    "def f(x):\n    return open('a')",
    "def f(x):\n    while True:\n        pass",
    "def f(x):\n    return f(x)",
    "def f(x):\n    return 9**9**9**9",
    "def f(x):\n    return 'a' * 10**9",
    "def f(x):\n    return '%9999999d' % 1",
    "def f(x):\n    return sum(range(10**12))",
    "def f(x):\n    y = 'a' * 900\n    return y.replace('a', y)",
    "def f(x):\n    y = [1]\n    y[0] = y\n    return y",
    "def f(x):\n    y = [1]\n    while 1:\n        y.append(1)",
    "def f(x):\n    y = [1]\n    y.append(y)\n    return y",
    "def f(x):\n    return " + "-" * 1500 + "1",
    "def f(x):\n    return " + "(" * 900 + "1" + ")" * 900,
    "def f(x):\n    break",
    "@f\ndef f(x):\n    return 1",
    "def f(x, *, y=1):\n    return zip",
    "def f(x):\n    return [a for a in range(999) for b in range(999)]",
    "def f(x):\n    return len(sorted([a for a in range(999)] * 900))",
    "f = lambda x: x",
    "def f(x):\n    return\x00",
    "def f(",
    "x" * 3000,
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_code_ends_at_once_with_one_error(source):
    start = time.process_time()
    with pytest.raises(PythonError):
        call(source, "f", [3])
    assert time.process_time() - start < 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2), st.integers(0, 10**6), st.lists(st.integers(0, 49), min_size=1, max_size=8)
)
def test_the_reader_of_python_agrees_with_python(level, seed, numbers):
    """The references are ours, so they may be executed here."""
    item = draw("code", random.Random(seed), level)
    scope: dict = {}
    exec(item.answer, scope)
    for given_, expected in item.data["examples"]:
        assert scope["f"](given_) == expected


MANY_STATEMENTS = """
def g(n):
    if n < 2:
        return 1
    return n * g(n - 1)

def f(n):
    out = []
    i = 0
    while True:
        i += 1
        if i % 2:
            continue
        if i > n and not i == 3:
            break
        a, b = i, g(i)
        out.append(a + b)
    return out[::-1] + [1 < 2 < 3, -1, len(out), max(1, 2)]
"""


def test_statements_of_the_subset_mean_what_they_mean_in_python():
    source = MANY_STATEMENTS
    scope: dict = {}
    exec(source, scope)
    assert call(source, "f", [6]) == scope["f"](6)
    assert tasks_python.MAX_STEPS > 100 and tasks_code.EXAMPLES > 3


def test_reasoning_gym_rewards_only_full_marks():
    pytest.importorskip("reasoning_gym")
    for name in ("rg:chain_sum", "rg:gcd", "rg:count_bits"):
        for item in items(name, 0, 5, 0):
            assert score(item, item.answer) == 1.0
            assert (
                score(item, "not a number") == 0.0
            )  # the package itself gives 0.01 to some wrong answers
    easy, hard = (items("rg:chain_sum", level, 20, 0) for level in (0, 3))
    assert max(len(i.answer) for i in easy) < max(len(i.answer) for i in hard)


def test_wrong_names_and_levels_are_told():
    with pytest.raises(EtudeError, match="did you mean instruct"):
        family("instuct")
    with pytest.raises(EtudeError, match="level 9, expected 0 to 2"):
        draw("sum", random.Random(0), 9)
    pytest.importorskip("reasoning_gym")
    with pytest.raises(EtudeError, match="did you mean chain_sum"):
        family("rg:chain_sums")
