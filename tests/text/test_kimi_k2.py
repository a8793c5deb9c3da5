"""The format of Kimi K2: ids that carry the name and the number of a call."""

import pytest

from etude.errors import EtudeError
from etude.text import chat
from etude.text.format import Call
from etude.text.turns import Message, parse

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": n, "parameters": PARAMETERS}}
    for n in ("add", "add_all", "get-x.y")
]
ASK = {"role": "user", "content": "2+3?"}
WORDS = "You are Kimi, an AI assistant created by Moonshot AI."
OWN = f"<|im_system|>system<|im_middle|>{WORDS}<|im_end|>"
USER = "<|im_user|>user<|im_middle|>2+3?<|im_end|>"
HEAD = "<|im_assistant|>assistant<|im_middle|>"


def use(*names: str, **more: object) -> dict:
    calls = [{"function": {"name": name, "arguments": {"a": 2}}} for name in names]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def section(*calls: tuple[str, str]) -> str:
    inner = "".join(
        f"<|tool_call_begin|>{id}<|tool_call_argument_begin|>{body}<|tool_call_end|>"
        for id, body in calls
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def result(id: str, text: str, word: str = "tool") -> str:
    return f"<|im_system|>{word}<|im_middle|>## Return of {id}\n{text}<|im_end|>"


def rendered(messages: list[dict], format: str = "kimi_k2", **options: object) -> str:
    return chat.render(messages, format=format, **options)


def test_a_conversation_with_tools_is_written_as_the_release_writes_it():
    """Keys of a declaration are sorted; a number counts the calls of the whole conversation."""
    tool = {"type": "function", "function": {"name": "add", "description": "é", "parameters": {}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        ASK,
        {**use("add", "mul"), "content": "I add."},
        {"role": "tool", "content": "5"},
        {"role": "tool", "content": "6", "name": "mul"},
        use("add"),
        {"role": "tool", "content": "7"},
    ]
    assert rendered(messages, tools=[tool], generation_prompt=True) == (
        "<|im_system|>tool_declare<|im_middle|>"
        '[{"function":{"description":"é","name":"add","parameters":{}},"type":"function"}]<|im_end|>'
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
        + USER
        + f"{HEAD}I add."
        + section(("functions.add:0", '{"a": 2}'), ("functions.mul:1", '{"a": 2}'))
        + "<|im_end|>"
        + result("functions.add:0", "5")
        + result("functions.mul:1", "6", "mul")
        + HEAD
        + section(("functions.add:2", '{"a": 2}'))
        + "<|im_end|>"
        + result("functions.add:2", "7")
        + HEAD
    )


def test_without_a_system_message_the_own_one_is_written():
    assert rendered([ASK], generation_prompt=True) == OWN + USER + HEAD
    assert rendered([]) == OWN


def test_ids_of_another_shape_are_written_anew_and_so_are_those_of_their_results():
    """A foreign id would teach the model to write calls without a name."""
    turn = use("add", "mul")
    turn["tool_calls"][0]["id"], turn["tool_calls"][1]["id"] = "toolu_a", "toolu_b"
    told = [
        {"role": "tool", "content": "second", "tool_call_id": "toolu_b"},
        {"role": "tool", "content": "first", "tool_call_id": "toolu_a"},
    ]
    text = rendered([turn, *told])
    assert "toolu" not in text
    assert result("functions.mul:1", "second") + result("functions.add:0", "first") in text


def test_an_id_as_the_model_wrote_it_stays():
    turn = use("add")
    turn["tool_calls"][0]["id"] = "functions.add:7"
    told = {"role": "tool", "content": "5", "tool_call_id": "functions.add:7"}
    text = rendered([turn, told])
    assert section(("functions.add:7", '{"a": 2}')) in text
    assert result("functions.add:7", "5") in text


def test_k2_never_thinks_and_its_successor_always_does():
    turn = {"role": "assistant", "content": "5", "reasoning_content": "why"}
    assert rendered([ASK, turn]) == OWN + USER + f"{HEAD}5<|im_end|>"
    assert rendered([ASK, turn], "kimi_k2_thinking") == (
        OWN + USER + f"{HEAD}<think>why</think>5<|im_end|>"
    )
    for name in ("kimi_k2", "kimi_k2_thinking"):
        assert rendered([ASK], name, generation_prompt=True).endswith(HEAD)


def test_reasoning_is_kept_between_tool_calls_and_erased_before_an_earlier_answer():
    answer = {"role": "assistant", "content": "5", "reasoning_content": "old"}
    messages = [
        ASK,
        answer,
        ASK,
        use("add", reasoning_content="new"),
        {"role": "tool", "content": "5"},
    ]
    text = rendered(messages, "kimi_k2_thinking")
    assert f"{HEAD}<think></think>5<|im_end|>" in text
    assert f"{HEAD}<think>new</think><|tool_calls_section_begin|>" in text


def test_a_result_appended_to_a_running_context_must_say_what_it_answers():
    tokenizer = chat.new_tokenizer(["x"], 300, format="kimi_k2")
    with pytest.raises(EtudeError, match="no tool_call_id"):
        chat.observation(tokenizer, ["5"], format="kimi_k2")


ONE = ("functions.add:3", '{"a": 2, "s": "é"}')
CALL = Call("add", {"a": 2, "s": "é"}, "functions.add:3")
SINGULAR = section(ONE).replace("calls_section", "call_section")
GOOD = {
    "I add." + section(ONE) + "<|im_end|>": Message("", "I add.", [CALL], [], "<|im_end|>"),
    section(ONE, ONE): Message(tool_calls=[CALL, CALL]),
    SINGULAR: Message(tool_calls=[CALL]),
    section(("functions.get-x.y:0", "{}")): Message(
        tool_calls=[Call("get-x.y", {}, "functions.get-x.y:0")]
    ),
    section((" functions.add:0\n", ' "{\\"a\\": 1}"')): Message(
        tool_calls=[Call("add", {"a": 1}, "functions.add:0")]
    ),
    "<think>is text</think> here<|im_end|>": Message(
        content="<think>is text</think> here", end="<|im_end|>"
    ),
}
BAD = {
    section(): "no call in <|tool_calls_section_begin|>",
    section(ONE) + "more": "text after a tool call",
    section(ONE).removesuffix("<|tool_calls_section_end|>"): "section_begin|> never closes",
    section(ONE).removeprefix("<|tool_calls_section_begin|>"): "outside of",
    section(ONE).replace("<|tool_call_end|>", ""): "<|tool_call_begin|> never closes",
    section(("functions.add:3", "{")): "not JSON",
    section(("functions.add:3", '{"a": 1, "a": 1}')): "'a' given twice",
    section(("functions.add:3", '{"a": "1"}')): "'a' is not of type integer",
    section(ONE).replace("<|tool_call_argument_begin|>", ""): "argument_begin|> expected after",
    section(("functions.sub:0", "{}")): "unknown tool 'sub'",
    section(("add", "{}")): "call id 'add' is not functions.NAME:INDEX",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_well_formed_reply_is_taken_apart(text):
    assert parse(text, TOOLS, format="kimi_k2") == GOOD[text]


@pytest.mark.parametrize("text", BAD, ids=BAD.values())
def test_what_breaks_the_format_is_reported_and_never_raised(text):
    problems = parse(text, TOOLS, format="kimi_k2").problems
    assert any(BAD[text] in problem for problem in problems)


def test_an_id_at_fault_calls_the_longest_tool_that_stands_in_it():
    message = parse(section(("call_add_all_1", "{}"), ("add", "{}")), TOOLS, format="kimi_k2")
    assert [call.name for call in message.tool_calls] == ["add_all", "add"]
    assert len(message.problems) == 2


def test_a_call_that_begins_inside_the_reasoning_ends_it():
    message = parse("<think>I add" + section(ONE), TOOLS, format="kimi_k2_thinking")
    assert message == Message("I add", "", [CALL])


def test_a_message_put_back_keeps_the_ids_that_the_model_wrote():
    message = parse("I add." + section(ONE) + "<|im_end|>", TOOLS, format="kimi_k2")
    assert section(ONE) in rendered([message.chat()])
