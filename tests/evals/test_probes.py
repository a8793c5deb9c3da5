"""Probes ask held-out questions, the same of every stage and in both modes."""

import re

from etude.data import tasks
from etude.data.tasks import Item
from etude.evals.probes import ask
from etude.recipe.parts import Probe
from etude.recipe.stages import Eval
from tests.rl.fakes import player

SPEC = Eval(of=("sft",), items=30, samples=4, pass_k=2)


def value(text):
    """The right answer of a `sum` question, read off the prompt."""
    question = text.rpartition("<|user|>\n")[2].partition("?")[0]
    return str(eval(question))


def rows_of(found):
    return {(row["level"], row["mode"], row["metric"]): row for rows, _ in found for row in rows}


def test_accuracy_is_told_greedy_and_sampled_with_and_without_thinking():
    def rule(text, seed):
        thinking = not text.endswith("</think>")
        right = thinking or seed % 2
        return f"\n{'<think>x</think>' if thinking else ''}{value(text) if right else '?'}<|user|>"

    probe = Probe(levels=(0, 1), thinking=(True, False))
    found = list(ask(player(rule), "sum", probe, SPEC, 5))
    rows = rows_of(found)
    assert len(rows) == 2 * 2 * 3
    assert rows[0, "think", "greedy"]["value"] == rows[1, "think", "pass@2"]["value"] == 1
    sampled, either = (rows[1, "nothink", metric]["value"] for metric in ("sampled", "pass@2"))
    assert 0.3 < sampled < 0.7 and either > sampled
    assert found[0][1][0]["reasoning"] == "x"


def test_questions_are_held_out_different_and_shared_by_modes_and_stages():
    asked = {}
    for stage in range(2):
        made = player(lambda text, seed: "a<|user|>")
        probe = Probe(levels=(0,), thinking=(True, False))
        list(ask(made, "sum", probe, SPEC, 5))
        greedy = [prompts for prompts, params in made.sampler.calls if params.temperature == 0]
        texts = [[made.dialogue.tokenizer.decode(p.ids) for p in prompts] for prompts in greedy]
        asked[stage] = [[t.partition("?")[0].rpartition("\n")[2] for t in part] for part in texts]
    assert asked[0] == asked[1] and asked[0][0] == asked[0][1]
    assert len(set(asked[0][0])) == 30
    asked_items = [Item("sum", 0, f"{question}?", "") for question in asked[0][0]]
    assert all(tasks.held_out(item) for item in asked_items)


def test_agentic_rows_tell_validity_the_exact_call_and_the_final_answer_apart():
    def rule(text, seed):
        if "</tool_response>" in text:
            return f"\n{text.rpartition('<tool_response>')[2].split()[0]}<|user|>"
        key, value = "<arg_key>expression</arg_key>", "<arg_value>1+1</arg_value>"
        return f"\n<tool_call>calculator\n{key}\n{value}\n</tool_call><|observation|>"

    probe = Probe(levels=(0,), turns=2, column="agentic")
    rows = rows_of(ask(player(rule), "calc", probe, SPEC, 0))
    found = {metric: rows[0, "nothink", metric]["value"] for metric in ("valid", "exact", "greedy")}
    assert found == {"valid": 1.0, "exact": 0.0, "greedy": 0.0}
    assert rows[0, "nothink", "valid"]["column"] == "agentic"


def test_several_numbers_of_turns_ask_the_same_questions_and_are_told_apart():
    """GLM-4.5 section 3.3: an attempt that would call again when its turns are over has failed."""

    def rule(text, seed):
        if "</tool_response>" in text:
            return f"\n{text.rpartition('<tool_response>')[2].split()[0]}<|user|>"
        asked = text.rpartition("<|user|>\n")[2].partition("<")[0]
        said = re.search(r"\d+[-+*]\d+", asked)[0]
        call = "<tool_call>calculator\n<arg_key>expression</arg_key>"
        return f"\n{call}\n<arg_value>{said}</arg_value>\n</tool_call><|observation|>"

    found = list(ask(player(rule), "calc", Probe(levels=(0,), turns=(1, 2)), SPEC, 0))
    greedy = {r["turns"]: r["value"] for rows, _ in found for r in rows if r["metric"] == "greedy"}
    assert greedy == {1: 0.0, 2: 1.0}
    (_, first), (_, second) = found
    assert [one["prompt"] for one in first] == [one["prompt"] for one in second]
    assert [one["turns"] for one in (*first, *second)] == [1, 1, 2, 2]


def test_one_number_of_turns_leaves_rows_as_they_are():
    (rows, _), *_ = ask(player(lambda text, seed: "a<|user|>"), "rev", Probe(turns=3), SPEC, 0)
    assert not any("turns" in row for row in rows)


def test_without_samples_there_are_greedy_rows_only():
    spec = Eval(of=("sft",), items=4, samples=0)
    rows = rows_of(ask(player(lambda text, seed: "a<|user|>"), "rev", Probe(), spec, 0))
    assert [metric for _, _, metric in rows] == ["greedy"]
