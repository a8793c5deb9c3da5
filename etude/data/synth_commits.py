"""Change records: an issue, its code, the commit that repairs it and a test, in one context.

GLM-4.5's first mid-training stage joins related issues, pull requests and commits, the latter "in a
diff-like format" (arXiv:2508.06471, section 2.3). Here the code is that of installed packages, the
fault is seeded (`synth_faults`) and the record is its repair. Records of real releases come from
`etude data fetch`.
"""

import ast
import random
import re
from collections.abc import Iterable, Iterator
from itertools import product

from etude.data.documents import Document
from etude.data.synth_faults import Fault, Function, fault, functions
from etude.data.tasks_python import PythonError, call

CONTEXT = 3  # lines around a change, as diff shows them
ROUNDS = 16  # functions at most of one file
PASSES = 3  # faults at most of one function
TRIED = (0, 1, 2, 5, -3)  # arguments for which a repaired function may differ from the broken one


def commits(documents: Iterable[Document], count: int, seed: int) -> Iterator[Document]:
    """Yield up to `count` change records from the functions of code documents.

    Args:
        documents: Python files; others are passed over.
        count: how many; fewer when the files have too few functions.
        seed: decides all of them.
    """
    rng = random.Random(seed)
    files = [d for d in documents if d.name.endswith(".py") and functions(d.name, d.text)]
    rng.shuffle(files)
    each = min(ROUNDS, -(-2 * count // max(len(files), 1)))
    made = 0
    for file in files * PASSES:
        for record in _records(file, each, rng):
            if made == count:
                return
            yield Document(record, "commits", file.source, f"{file.name}#{made}", file.licence)
            made += 1


def _records(file: Document, most: int, rng: random.Random) -> Iterator[str]:
    found = functions(file.name, file.text)
    for function in rng.sample(found, min(most, len(found))):
        wrong = fault(function, rng)
        if wrong:
            yield record(function, wrong, rng)


def record(function: Function, wrong: Fault, rng: random.Random) -> str:
    """Return the issue, the code as it was, the pull request with its difference, and a test."""
    number = rng.randint(10, 9999)
    title, body = issue(function, wrong, rng)
    before = "\n".join(_broken(function, wrong)[function.first - 1 : function.last])
    return (
        f"Issue #{number}: {title}\n{body}\n\n"
        f"{function.path}:\n{before}\n\n"
        f"Pull request: {_summary(function, wrong)}\nFixes #{number}.\n\n"
        f"{difference(function, wrong)}\n\n"
        f"Test:\n{proof(function, wrong)}\n"
    )


TITLES = {
    "comparison": ("`{f}` treats the border case wrongly", "`{f}` compares the wrong way"),
    "sign": ("`{f}` gives a wrong value", "the arithmetic of `{f}` is off"),
    "constant": ("`{f}` is off by one", "`{f}` counts one too many"),
    "name": ("`{f}` uses the wrong argument", "arguments of `{f}` are mixed up"),
    "branch": ("`{f}` takes the wrong branch", "the condition in `{f}` is wrong"),
}
BODIES = (
    "Found while reading `{path}`. The line\n    {line}\nlooks wrong.",
    "After an update `{f}` no longer does what its callers expect. I traced it to\n    {line}",
    "Steps: call `{f}` from `{path}`. Expected the documented result, got another. See\n    {line}",
)


def issue(function: Function, wrong: Fault, rng: random.Random) -> tuple[str, str]:
    """Return title and body of an issue that reports the fault without the repair."""
    words = {"f": function.name, "path": function.path, "line": wrong.wrong.strip()}
    return rng.choice(TITLES[wrong.kind]).format(**words), rng.choice(BODIES).format(**words)


def _summary(function: Function, wrong: Fault) -> str:
    change = (
        f"`{wrong.became.strip()}` to `{wrong.was.strip()}`" if wrong.became else "a lost `not`"
    )
    return f"fix the {wrong.kind} in {function.name}: {change}"


def _broken(function: Function, wrong: Fault) -> list[str]:
    lines = list(function.lines)
    lines[wrong.line - 1] = wrong.wrong
    return lines


def difference(function: Function, wrong: Fault) -> str:
    """Return the repair as the unified difference that `difflib` gives for one line."""
    total = len(function.lines)
    first, last = max(wrong.line - CONTEXT, 1), min(wrong.line + CONTEXT, total)
    above = [f" {line}" for line in function.lines[first - 1 : wrong.line - 1]]
    below = [f" {line}" for line in function.lines[wrong.line : last]]
    size = last - first + 1
    head = [f"--- a/{function.path}", f"+++ b/{function.path}"]
    span = f"{first},{size}" if size > 1 else str(first)
    change = [f"-{wrong.wrong}", f"+{wrong.right}"]
    return "\n".join([*head, f"@@ -{span} +{span} @@", *above, *change, *below])


def proof(function: Function, wrong: Fault) -> str:
    """Return a test that holds after the repair.

    The best that can be had without running foreign code: a call that our reader of Python worked
    out both ways (it fails before the repair), else an example of the docstring, else a look at the
    source.
    """
    name = function.name.rpartition(".")[2]
    check = _called(function, wrong) or _documented(function) or _looked_up(function, wrong)
    return f"def test_{name.strip('_')}():\n    {check}"


def _called(function: Function, wrong: Fault) -> str:
    arguments = function.node.args
    names = [argument.arg for argument in arguments.args]
    if "." in function.name or not 1 <= len(names) <= 2 or function.node.decorator_list:
        return ""
    broken = _broken(function, wrong)[function.first - 1 : function.last]
    for values in product(TRIED, repeat=len(names)):
        try:
            right = call("\n".join(function.source), function.name, values)
        except PythonError:
            return ""
        try:
            same = call("\n".join(broken), function.name, values) == right
        except PythonError:
            same = False
        if not same:
            return f"assert {function.name}({', '.join(map(repr, values))}) == {right!r}"
    return ""


def _documented(function: Function) -> str:
    name = re.escape(function.name.rpartition(".")[2])
    text = ast.get_docstring(function.node) or ""
    for asked, told in re.findall(
        rf"^>>> ((?:\w+\.)?{name}\(.*\))\n(?!>>>|\.\.\.)(\S.*)$", text, re.M
    ):
        if not re.search(r"[A-Za-z_]", asked.partition("(")[2]):  # plain values, no variables
            return f"assert repr({asked}) == {told.strip()!r}"
    return ""


def _looked_up(function: Function, wrong: Fault) -> str:
    return f"assert {wrong.right.strip()!r} in inspect.getsource({function.name})"
