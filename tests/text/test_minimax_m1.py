"""The format of MiniMax-M1: two tokens around each turn, everything else in letters."""

import pytest

from etude.errors import EtudeError
from etude.text import chat, template
from etude.text.format import Call
from etude.text.minimax_m1 import MiniMaxM1
from etude.text.tokenizer import Tokenizer
from etude.text.turns import Message, Turns, parse

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}
ADD = {"name": "add", "description": "Add two integers.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": ADD}]
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": [{"type": "text", "text": "2+3?"}]}
USE = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "Use the tool.",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": 3}}}],
}
FIVE = {"role": "tool", "content": "5"}

EXAMPLE = """<begin_of_document><beginning_of_sentence>system ai_setting=assistant
Be brief.<end_of_sentence>
<beginning_of_sentence>system tool_setting=tools
You are provided with these tools:
<tools>
{"name": "add", "description": "Add two integers.", "parameters": PARAMETERS}
</tools>

If you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide \
tool-name and json-object of arguments, following the format below:
<tool_calls>
{name: <tool-name-1>, arguments: <args-json-object-1>}
...
</tool_calls><end_of_sentence>
<beginning_of_sentence>user name=user
2+3?<end_of_sentence>
<beginning_of_sentence>ai name=assistant
<think>
Use the tool.
</think>
<tool_calls>
{"name": "add", "arguments": {"a": 2, "b": 3}}
</tool_calls><end_of_sentence>
<beginning_of_sentence>tool name=tools
tool name: add
tool result: 5

<end_of_sentence>
<beginning_of_sentence>ai name=assistant
""".replace(
    "PARAMETERS",
    '{"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}',
)


def rendered(messages: list[dict], **options: object) -> str:
    return chat.render(messages, format="minimax_m1", **options)


def test_a_conversation_with_a_tool_is_written_as_the_release_writes_it():
    messages = [SYSTEM, ASK, USE, FIVE]
    assert rendered(messages, tools=TOOLS, generation_prompt=True) == EXAMPLE
    assert rendered(messages, tools=[ADD], generation_prompt=True) == EXAMPLE


def test_the_keys_of_the_instruction_are_bare_and_quoted_on_request():
    bare = "{name: <tool-name-1>, arguments: <args-json-object-1>}"
    quoted = '{"name": <tool-name-1>, "arguments": <args-json-object-1>}'
    for format, said, other in (
        (MiniMaxM1(), bare, quoted),
        (MiniMaxM1(quoted=True), quoted, bare),
    ):
        text = chat.render([ASK], tools=TOOLS, format=format)
        assert said in text
        assert other not in text


def test_all_system_messages_stand_first_as_one():
    later = {"role": "system", "content": " And kind."}
    assert rendered([ASK, SYSTEM, later]) == (
        "<begin_of_document><beginning_of_sentence>system ai_setting=assistant\n"
        "Be brief. And kind.<end_of_sentence>\n"
        "<beginning_of_sentence>user name=user\n2+3?<end_of_sentence>\n"
    )


def test_a_run_of_results_is_one_turn_whether_it_comes_as_parts_or_as_messages():
    calls = [
        {"id": i, "function": {"name": n, "arguments": {}}} for i, n in (("x", "f"), ("y", "g"))
    ]
    use = {"role": "assistant", "content": "", "tool_calls": calls}
    parts = [{"name": "g", "type": "text", "text": "2"}, {"name": "f", "type": "text", "text": "1"}]
    told = [
        {"role": "tool", "content": "2", "tool_call_id": "y"},
        {"role": "tool", "content": "1", "tool_call_id": "x"},
    ]
    expected = (
        "<beginning_of_sentence>tool name=tools\ntool name: g\ntool result: 2\n\n"
        "tool name: f\ntool result: 1\n\n<end_of_sentence>\n"
    )
    for results in (told, [{"role": "tool", "content": parts}]):
        assert rendered([use, *results]).endswith(expected)
    source = MiniMaxM1().template()
    raw = template.render_template(source, [use, {"role": "tool", "content": parts}])
    assert raw.endswith(expected)


@pytest.mark.parametrize("name", ["<beginning_of_sentence>", "<end_of_sentence>"])
def test_a_vocabulary_without_the_ends_of_a_turn_is_refused(name):
    poor = Tokenizer.train(["x"], 300, [n for n in MiniMaxM1.special if n != name])
    with pytest.raises(EtudeError, match=name):
        chat.prompt(poor, [ASK], format="minimax_m1")


def test_a_result_in_a_running_context_may_be_named_by_its_tool():
    tokenizer = chat.new_tokenizer(["x"], 300, format="minimax_m1")
    told = [{"role": "tool", "content": "5", "tool_call_id": "add"}]
    ids = chat.observation(tokenizer, told, format="minimax_m1")
    assert tokenizer.decode(ids).startswith(
        "\n<beginning_of_sentence>tool name=tools\ntool name: add\ntool result: 5\n\n"
    )


def test_reasoning_that_the_caller_leaves_in_stays():
    turn = {"role": "assistant", "content": "5", "reasoning_content": "\nwhy\n"}
    body = "<think>\nwhy\n</think>\n5<end_of_sentence>\n"
    assert rendered([turn, ASK]).count(body) == 1


def calls(*lines: str) -> str:
    return "\n".join(["<tool_calls>", *lines, "</tool_calls>"])


ONE = '{"name": "add", "arguments": {"a": 2, "s": "é\\n"}}'
GOOD = {
    "<think>\nwhy\n</think>\nbecause\n" + calls(ONE) + "<end_of_sentence>": Message(
        "why", "because", [Call("add", {"a": 2, "s": "é\n"})], [], "<end_of_sentence>"
    ),
    calls(ONE, ONE): Message(tool_calls=[Call("add", {"a": 2, "s": "é\n"})] * 2),
    calls('{"name": "add", "arguments": "{\\"a\\": 1}"}'): Message(
        tool_calls=[Call("add", {"a": 1})]
    ),
    calls('{"name": "add"}'): Message(tool_calls=[Call("add", {})]),
    "<think>I could write " + calls(ONE) + "</think>no": Message(
        "I could write " + calls(ONE), "no"
    ),
    "plain <end_of_sentence> text": Message(content="plain <end_of_sentence> text"),
}
BAD = {
    calls(): "no call between the tags",
    calls("{add}"): "not JSON",
    calls("[1]"): "a JSON object expected",
    calls('{"name": "add", "arguments": [1]}'): "a name and an object of arguments expected",
    calls('{"arguments": {}}'): "a name and an object of arguments expected",
    calls('{"name": "add", "arguments": {"a": 1, "a": 2}}'): "'a' given twice",
    calls('{"name": "add", "arguments": {"a": NaN}}'): "NaN is no JSON",
    calls('{"name": "add", "arguments": {"a": "2"}}'): "'a' is not of type integer",
    calls('{"name": "add", "arguments": {"s": 2}}'): "'s' is not of type string",
    calls('{"name": "sub", "arguments": {}}'): "unknown tool 'sub'",
    calls("[" * 100_000): "not JSON",
    "<tool_calls>\n" + ONE: "<tool_calls> never closes",
    "a</tool_calls>": "stray </tool_calls>",
    calls(ONE) + "and": "text after a tool call",
    calls(ONE) + "<end_of_document>": "<end_of_document> after a tool call",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_well_formed_reply_is_taken_apart(text):
    assert parse(text, TOOLS, format="minimax_m1") == GOOD[text]


@pytest.mark.parametrize("text", BAD, ids=BAD.values())
def test_what_breaks_the_format_is_reported_and_never_raised(text):
    problems = parse(text, TOOLS, format="minimax_m1").problems
    assert any(BAD[text] in problem for problem in problems)


def test_a_broken_line_leaves_the_calls_of_the_others():
    message = parse(calls(ONE, "{", ONE), TOOLS, format="minimax_m1")
    assert len(message.tool_calls) == 2
    assert len(message.problems) == 1


def test_the_calls_come_when_their_block_closes():
    turns = Turns(TOOLS, format="minimax_m1")
    assert turns.feed("<tool_calls>\n" + ONE) == []
    assert [e.kind for e in turns.feed("\n</tool_calls>")] == ["call"]
