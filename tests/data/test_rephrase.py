"""The same facts told in two ways: what the two groups share, and where they differ."""

from collections import Counter

from etude.data.facts import GROUPS, PEOPLE, VALUES, people
from etude.data.synth import derive
from etude.data.synth_rephrase import STYLES, TIMES, faithful, rewrite, source, told
from etude.data.tasks import held_out, items


def documents(group, **how):
    return [d.text for d in told(group, 10_000, 0, **how)]


def test_each_person_is_told_of_ten_times_in_ten_wordings_or_in_one():
    """Kimi K2, table 1: ten rewritings once against one text ten times, so at equal exposure."""
    reworded, same = (Counter(documents(group)) for group in GROUPS)
    assert sum(reworded.values()) == sum(same.values()) == PEOPLE * TIMES
    assert set(reworded.values()) == {1}
    assert set(same.values()) == {TIMES} and len(same) == PEOPLE
    sizes = [sum(len(text) * n for text, n in texts.items()) for texts in (reworded, same)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02


def test_both_groups_hold_every_style_alike():
    for group in GROUPS:
        found = Counter(
            style
            for text in documents(group)
            for style in range(TIMES + 1)
            for person in people(group)
            if STYLES["pet"][style].format(who=person.name, x=person.facts["pet"]) in text
        )
        assert TIMES not in found  # the last one is for evaluation alone
        assert max(found.values()) - min(found.values()) <= TIMES


def test_every_rewriting_keeps_the_name_and_every_fact():
    for group in GROUPS:
        for person in people(group):
            for style in range(TIMES + 1):
                assert faithful(rewrite(source(person), person, style=style, seed=3), person)
    person = people("rephrased")[0]
    assert not faithful(f"{person.name} is a baker.", person)


def test_the_groups_are_different_people_and_facts_are_spread_evenly():
    one, other = ({p.name for p in people(group)} for group in GROUPS)
    assert len(one) == len(other) == PEOPLE and not one & other
    for key, values in VALUES.items():
        counts = Counter(p.facts[key] for group in GROUPS for p in people(group))
        assert set(counts) == set(values)
        assert max(counts.values()) < 2.5 * 2 * PEOPLE / len(values)


def test_evaluation_reads_a_wording_that_training_does_not_hold():
    for group in GROUPS:
        unseen = documents(group, held=True)
        assert len(unseen) == PEOPLE and not set(unseen) & set(documents(group))


def test_people_asked_about_in_training_are_never_asked_about_in_evaluation():
    for level, group in enumerate(GROUPS):
        facts = {p.name: p.facts for p in people(group)}
        asked = {}
        for side in (False, True):
            made = items("fact", level, 40, 0, held=side)
            asked[side] = {item.key for item in made}
            assert all(held_out(item) == side for item in made)
            assert all(item.answer in facts[item.key].values() for item in made)
        assert asked[False] and asked[True] and not asked[False] & asked[True]


def test_a_recipe_finds_both_sets_by_name_and_a_smaller_count_tells_of_all_people_first():
    found = [d.text for d in derive("rephrased", None, PEOPLE, 0)]
    assert len(found) == PEOPLE
    assert all(person.name in text for person, text in zip(people(GROUPS[0]), found, strict=True))
