"""Functions of the standard library as tools: schemas from signatures, results from real calls."""

import random

import pytest

from etude.data.tasks import items, score
from etude.data.tools import TOOLS, bind
from etude.data.tools_real import REAL


@pytest.mark.parametrize("real", REAL.values(), ids=REAL)
def test_a_schema_names_the_functions_own_arguments_and_a_drawn_call_is_answered(real):
    (tool,) = bind((real.name,))
    rng = random.Random(0)
    for _ in range(20):
        arguments = {name: draw(rng) for name, draw in real.arguments.items()}
        found = tool.call(**arguments)
        assert found == str(real.function(*arguments.values()))
        assert all(form.format(**arguments) for form in real.asked)
    schema = tool.schema()["function"]
    assert schema["parameters"]["required"] == list(real.arguments)
    assert schema["description"]


def test_a_call_that_raises_is_answered_in_one_line():
    assert bind(("operator_mod",))[0].call(a=3, b=0).startswith("error: ")
    assert bind(("math_isqrt",))[0].call(n="7") == "error: n must be a integer"


@pytest.mark.parametrize("level", range(3))
def test_a_question_offers_its_tool_among_others_and_its_answer_is_what_the_tool_says(level):
    for item in items("schema", level, 30, 0):
        (call,) = item.calls
        assert call.name in item.tools and len(item.tools) == level + 1
        assert TOOLS[call.name]({}).call(**call.arguments) == item.answer
        assert score(item, item.answer) == 1
