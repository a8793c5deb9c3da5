"""Free answers under constraints of seven kinds: every rule is checked, any true answer counts."""

import pytest

from etude.data.tasks import items, score
from etude.data.tasks_constraints import MORE, spelled, written
from etude.data.tasks_instruct import rules_kept


@pytest.mark.parametrize("level", [3, 4])
def test_answers_keep_every_rule_and_all_kinds_occur(level):
    seen = set()
    for item in items("instruct", level, 150, 0):
        assert all(rules_kept(item, item.answer))
        seen |= {kind for kind, _ in item.data["rules"]}
    assert seen == set(MORE)


@pytest.mark.parametrize(
    ("kind", "want", "good", "bad"),
    [
        ("number", "2", "lamp tree", "lamp"),
        ("include", "lamp", "tree lamp", "tree lamps"),
        ("exclude", "e", "lamp", "lamp tree"),
        ("twice", "lamp", "lamp tree lamp", "lamp lamp lamp"),
        ("first", "lamp", "lamp tree", "tree lamp"),
        ("last", "lamp", "tree lamp", "lamp tree"),
        ("sorted", "", "lamp tree", "tree lamp"),
        ("form", "title json", '["Lamp", "Tree"]', '["lamp", "tree"]'),
        ("form", "capitals numbered", "1. LAMP\n2. TREE", "1. LAMP 2. TREE"),
        ("form", "commas", "lamp, tree", "lamp,tree"),
        ("form", "quoted", '"lamp tree"', "lamp tree"),
        ("form", "shouted", "lamp tree!", "lamp tree."),
        ("form", "", "lamp tree", "lamp  tree"),
    ],
)
def test_a_rule_accepts_what_keeps_it_and_nothing_else(kind, want, good, bad):
    assert MORE[kind](good, want) and not MORE[kind](bad, want)
    assert not MORE[kind]("", want) or kind in ("sorted", "form")


def test_another_answer_that_keeps_all_rules_counts():
    item = next(
        i
        for i in items("instruct", 3, 300, 0)
        if {k for k, _ in i.data["rules"]} == {"number", "first", "exclude", "form"}
    )
    wants = dict(item.data["rules"])
    first, *_ = spelled(item.answer)
    words = [first] + ["lamp" if wants["exclude"] not in "lamp" else "boy"] * (
        int(wants["number"]) - 1
    )
    assert score(item, written(words, wants["form"])) == 1
    assert score(item, written(words[1:], wants["form"])) == 0
