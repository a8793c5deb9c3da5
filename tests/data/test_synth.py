"""Derived documents: repositories, change records, gaps, traces, long texts."""

import ast
import difflib
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.documents import Document
from etude.data.synth import DERIVED, derive
from etude.data.synth_commits import commits, difference
from etude.data.synth_faults import fault, functions
from etude.data.synth_fim import MIDDLE, PREFIX, SUFFIX, fim
from etude.data.synth_long import long
from etude.data.synth_repository import in_order, repository
from etude.data.synth_traces import OWN, traces
from etude.data.tasks import draw, held_out, items, score
from etude.data.tasks_steps import STEPS
from etude.errors import EtudeError

MODULE = '''"""Clamp and count."""

LIMIT = 10


def clamp(x, low):
    if x < low:
        return low
    return x


class Box:
    def total(self, a, b):
        """Add two numbers.

        >>> total(2, 3)
        5
        """
        kept = a + b * 2
        if kept and not self.closed:
            return kept
        return max(a, b) - 1


def only(one):
    seen = []
    for item in one:
        if item in seen or item == 3:
            seen.append(item)
    return seen
'''


def _file(name, text, source="pkg"):
    return Document(text, "code", source, name, "MIT")


FILES = [
    _file("pkg/main.py", "from pkg import tools\nfrom .core.base import Base\n"),
    _file("pkg/core/base.py", "from ..tools import cut\nimport os\n"),
    _file("pkg/tools.py", "import json\n"),
    _file("pkg/__init__.py", "from pkg.main import run\n"),
    _file("pkg/broken.py", "def f(:\n"),
]


class Small:
    """A corpus of a few files."""

    domains = ("code", "general")

    def documents(self, domain, split="train"):
        """Yield the files, or one article."""
        if domain == "general":
            return iter(
                [
                    Document(
                        " ".join(f"word{n}" for n in range(8000)),
                        "general",
                        "news",
                        f"a-{split}",
                        "CC0",
                    )
                ]
            )
        return iter(
            [
                *FILES,
                _file("pkg/box.py", MODULE),
                _file("click/8.1..8.2/x.py", "log", "commits_click"),
            ]
        )


def test_files_follow_those_they_import():
    order = [file.name for file in in_order(FILES)]
    for needed, needing in (("tools", "core/base"), ("core/base", "main"), ("main", "__init__")):
        assert order.index(f"pkg/{needed}.py") < order.index(f"pkg/{needing}.py")
    assert sorted(order) == sorted(file.name for file in FILES)


def test_a_cycle_of_imports_keeps_every_file_once():
    files = [
        _file("p/a.py", "import p.b"),
        _file("p/b.py", "from . import c"),
        _file("p/c.py", "import p.a"),
    ]
    assert sorted(file.name for file in in_order(files)) == ["p/a.py", "p/b.py", "p/c.py"]


def test_absolute_imports_of_a_library_without_a_folder_of_its_own_are_found():
    files = [
        _file("stdlib/json/tool.py", "import json.decoder"),
        _file("stdlib/json/decoder.py", "import re"),
    ]
    assert [file.name for file in in_order(files)] == [
        "stdlib/json/decoder.py",
        "stdlib/json/tool.py",
    ]


def test_a_context_holds_whole_files_of_one_package_under_their_paths():
    other = [_file(f"q/{n}.py", f"{n} = 1\n" * 40, "q") for n in "abcdefgh"]
    contexts = list(repository([*FILES, *other, _file("lone.py", "x = 1", "lone")], limit=700))
    assert {c.source for c in contexts} == {"pkg", "q"}
    assert all(len(c.text) < 900 and c.text.count("# file: ") > 1 for c in contexts)
    text = "".join(c.text for c in contexts)
    for file in [*FILES, *other]:
        assert text.count(f"# file: {file.name}\n{file.text.strip()}\n") == 1


@pytest.mark.parametrize("name", ["clamp", "Box.total", "only"])
def test_a_fault_changes_one_line_and_leaves_valid_python(name):
    function = next(f for f in functions("pkg/box.py", MODULE) if f.name == name)
    kinds = set()
    for seed in range(60):
        found = fault(function, random.Random(seed))
        kinds.add(found.kind)
        lines = MODULE.split("\n")
        assert lines[found.line - 1] == found.right != found.wrong
        lines[found.line - 1] = found.wrong
        assert ast.dump(ast.parse("\n".join(lines))) != ast.dump(ast.parse(MODULE))
        assert function.first <= found.line <= function.last
    assert kinds >= {
        "clamp": {"comparison", "name"},
        "only": {"branch", "comparison", "constant"},
    }.get(name, {"sign", "constant", "name", "branch"})


@pytest.mark.parametrize(
    "text", [MODULE, "def clamp(x, low):\n    if x < low:\n        return low\n    return x"]
)
def test_the_difference_is_the_one_that_difflib_writes(text):
    for function in functions("pkg/box.py", text):
        for seed in range(20):
            found = fault(function, random.Random(seed))
            broken = list(function.lines)
            broken[found.line - 1] = found.wrong
            names = ("a/pkg/box.py", "b/pkg/box.py")
            expected = difflib.unified_diff(broken, function.lines, *names, lineterm="", n=3)
            assert difference(function, found) == "\n".join(expected)


def test_a_change_record_joins_issue_code_repair_and_test():
    made = list(commits([_file("pkg/box.py", MODULE)], 3, 0))
    assert len(made) == 3
    for record in made:
        number = re.match(r"Issue #(\d+): ", record.text)[1]
        for part in (
            f"Fixes #{number}.",
            "Pull request: fix the ",
            "\n@@ -",
            "Test:\ndef test_",
            "assert ",
        ):
            assert part in record.text
        assert (record.domain, record.licence, record.source) == ("commits", "MIT", "pkg")
    assert made == list(commits([_file("pkg/box.py", MODULE)], 3, 0))


def test_the_test_of_a_record_is_a_call_where_the_function_can_be_worked_out():
    texts = [r.text for s in range(12) for r in commits([_file("pkg/box.py", MODULE)], 3, s)]
    called = [
        re.search(r"assert clamp\((-?\d), (-?\d)\) == (-?\d)", t)
        for t in texts
        if "def test_clamp" in t
    ]
    assert any(called)
    for found in filter(None, called):
        x, low, value = map(int, found.groups())
        assert max(x, low) == value
    assert any("assert repr(total(2, 3)) == '5'" in t for t in texts)


def test_files_that_are_no_python_give_no_record():
    assert list(commits([_file("a.py", "def f(:"), _file("b.txt", MODULE)], 5, 0)) == []


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.integers(0, 999))
def test_the_pieces_of_a_gapped_text_add_up_to_it(text, seed):
    pieces = fim(text, random.Random(seed), rate=1.0)
    plain, last = {}, ""
    for piece in pieces:
        if piece.marker:
            last = piece.text
        else:
            plain[last] = piece.text
    if len(text) < 3:
        assert [p.text for p in pieces] == [text]
    else:
        assert [p.text for p in pieces if p.marker] == [PREFIX, SUFFIX, MIDDLE]
        assert "".join(plain.get(mark, "") for mark in (PREFIX, MIDDLE, SUFFIX)) == text
        assert plain[MIDDLE]


def test_the_share_of_gapped_texts_is_the_rate():
    rng = random.Random(0)
    cut = sum(len(fim("x = 1\n" * 9, rng, rate=0.3)) > 1 for _ in range(2000))
    assert cut / 2000 == pytest.approx(0.3, abs=0.04)  # s.e. 0.01


def test_traces_are_question_steps_answer_and_keep_to_their_side_of_the_split():
    train, test = (list(traces(120, 3, mix=OWN, held=held)) for held in (False, True))
    assert train == list(traces(120, 3, mix=OWN))
    questions = [{d.text.split("\n")[0] for d in side} for side in (train, test)]
    assert not questions[0] & questions[1]
    assert "sum" in {d.source for d in train} and all(d.text.endswith("\n") for d in train)
    text = next(d.text for d in train if d.source == "var")
    question, steps, answer = text.strip().split("\n")
    assert question.endswith("?") and steps.endswith(f"={answer}")


@pytest.mark.parametrize("name", list(STEPS))
def test_written_steps_for_reasoning_gym_end_in_its_answer(name):
    pytest.importorskip("reasoning_gym")
    for level in (0, 1):
        for item in items(name, level, 15, 0):
            lines = item.steps.split("\n")
            end = re.split(r" = | is |, so far |ones ", lines[-1])[-1].strip() if lines[-1] else ""
            if "frac" in item.answer:
                end = "$\\frac{%s}{%s}$" % tuple(end.split("/"))  # noqa: UP031
            assert score(item, end) == 1.0, (item.question, lines)


@pytest.mark.parametrize(
    "name", ["rg:chain_sum", "rg:gcd", "rg:products", "rg:count_bits", "rg:lcm"]
)
def test_every_equation_in_the_steps_is_true(name):
    pytest.importorskip("reasoning_gym")
    for item in items(name, 1, 15, 1):
        for line in item.steps.split("\n"):
            left, _, right = line.partition(",")[0].replace(" x ", " * ").partition(" = ")
            if right:
                assert eval(left) == eval(right), line


def test_long_documents_are_whole_and_above_the_length():
    docs = [Document("x" * n, "code", "s", str(n), "MIT") for n in (10, 20, 30)]
    assert [d.name for d in long(docs, least=20)] == ["20", "30"]


@pytest.mark.parametrize("name", list(DERIVED))
def test_every_derived_set_is_made_by_name_and_by_seed(name):
    made = list(derive(name, Small(), 4, 0))
    assert made and len(made) <= 4
    assert made == list(derive(name, Small(), 4, 0))


def test_release_records_come_before_seeded_ones_and_are_no_repository():
    first, second, *_ = derive("commits", Small(), 4, 0)
    assert first.source == "commits_click" and second.source == "pkg"
    assert all(d.source != "commits_click" for d in derive("repository", Small(), 9, 0))


def test_an_unknown_derived_set_is_named_with_its_nearest():
    with pytest.raises(EtudeError, match="did you mean traces"):
        derive("trace", Small(), 1, 0)
    assert not held_out(draw("sum", random.Random(0), 0))
