"""Prompts that provoke faults: which faults are seen, and that a clean answer is right."""

import pytest

from etude.data.tasks import items, score
from etude.data.tasks_pathology import Pathology, faults


@pytest.mark.parametrize("level", range(Pathology.levels))
def test_the_answer_is_clean_and_the_prompt_itself_is_not_an_answer(level):
    for item in items("pathology", level, 60, 0):
        assert score(item, item.answer) == 1
        for wrong in ("", item.question, f"{item.answer} {item.answer}", item.answer[:-1] + "("):
            assert score(item, wrong) == 0


@pytest.mark.parametrize(
    ("text", "language", "found"),
    [
        ("three seven two", "english", ()),
        ("three sieben two", "english", ("language",)),
        ("three sieben two", None, ()),
        ("three \u4e03 two", None, ("language",)),
        ("broken \ufffd bytes", None, ("language",)),
        ("go go go", None, ()),
        ("go go go go", None, ("repetition",)),
        ("a b c a b c a b c a b c", None, ("repetition",)),
        ("a b c a b c a b c a b x", None, ()),
        ("aaaaaaaaaa", None, ("repetition",)),
        ('{"a": [1]}', None, ()),
        ('{"a": [1}', None, ("format",)),
        ("```\ncode", None, ("format",)),
        ("answer </think>", None, ("format",)),
        ("<|user|> more", None, ("format",)),
    ],
)
def test_faults_are_named(text, language, found):
    assert faults(text, language=language) == found


def test_json_may_be_laid_out_in_any_way():
    item = next(i for i in items("pathology", 2, 60, 0) if "a list of" in i.question)
    assert score(item, item.answer.replace(" ", "\n  ")) == 1
    assert score(item, item.answer.replace("[", "").replace("]", "")) == 0
