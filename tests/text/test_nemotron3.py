"""The format of Nemotron 3: a tag that the prompt opens, tools and calls in tags."""

import pytest

from etude.text import chat, template
from etude.text.format import Call
from etude.text.nemotron3 import Nemotron3
from etude.text.turns import Message, parse

PROPERTIES = {
    "a": {"type": "integer", "description": " First. ", "minimum": 0},
    "s": {"type": ["string", "null"], "enum": ["é", None], "items": {"type": "string"}},
    "b": {"type": "boolean"},
    "x": {"type": ["number", "null"]},
    "o": {"type": "object"},
    "free": {},
}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["a"], "$defs": {"n": 1}}
ADD = {"name": "add", "description": "Add.\n", "parameters": SCHEMA, "strict": True}
TOOLS = [{"type": "function", "function": ADD}]
ASK = {"role": "user", "content": "2+3?"}
ANSWER = {"role": "assistant", "content": "5", "reasoning_content": "why"}
USE = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "Use it.",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "s": "x", "b": True}}}],
}
FIVE = {"role": "tool", "content": "5"}
EMPTY = "<|im_start|>system\n<|im_end|>\n"
USER = "<|im_start|>user\n2+3?<|im_end|>\n"
CALL = (
    "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=s>\nx\n</parameter>\n"
    "<parameter=b>\nTrue\n</parameter>\n</function>\n</tool_call>\n"
)
DECLARED = """# Tools

You have access to the following functions:

<tools>
<function>
<name>add</name>
<description>Add.</description>
<parameters>
<parameter>
<name>a</name>
<type>integer</type>
<description>First.</description>
<minimum>0</minimum>
</parameter>
<parameter>
<name>s</name>
<type>['string', 'null']</type>
<enum>["é", null]</enum>
<items>{"type": "string"}</items>
</parameter>
"""


def rendered(messages: list[dict], of: Nemotron3 | None = None, **options: object) -> str:
    return chat.render(messages, format=of or "nemotron3", **options)


def test_tools_are_declared_field_by_field_behind_the_system_message():
    text = rendered([{"role": "system", "content": "Be brief."}], tools=TOOLS)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n" + DECLARED)
    assert '\n<$defs>{"n": 1}</$defs>\n<required>["a"]</required>\n</parameters>\n' in text
    assert "\n<strict>True</strict>\n</function>\n</tools>\n\nIf you choose to call" in text
    assert text.endswith("</IMPORTANT><|im_end|>\n")
    assert rendered([], tools=TOOLS).startswith("<|im_start|>system\n# Tools\n")


def test_the_prompt_opens_the_think_tag_or_closes_it():
    on = rendered([ASK], thinking=True, generation_prompt=True)
    off = rendered([ASK], thinking=False, generation_prompt=True)
    assert on == EMPTY + USER + "<|im_start|>assistant\n<think>\n"
    assert off == EMPTY + USER + "<|im_start|>assistant\n<think></think>"


def test_reasoning_after_the_last_user_message_stays_and_results_share_a_turn():
    assert rendered([ASK, USE, FIVE, FIVE, ANSWER]) == (
        EMPTY
        + USER
        + f"<|im_start|>assistant\n<think>\nUse it.\n</think>\n{CALL}<|im_end|>\n"
        + "<|im_start|>user\n"
        + 2 * "<tool_response>\n5\n</tool_response>\n"
        + "<|im_end|>\n<|im_start|>assistant\n<think>\nwhy\n</think>\n5<|im_end|>\n"
    )


def test_reasoning_before_the_last_user_message_is_erased_unless_it_is_to_stay():
    messages = [ASK, ANSWER, ASK]
    kept = "<|im_start|>assistant\n<think>\nwhy\n</think>\n5<|im_end|>\n"
    assert rendered(messages) == EMPTY + USER + (
        "<|im_start|>assistant\n<think></think>\n5<|im_end|>\n" + USER
    )
    assert rendered(messages, Nemotron3(truncate=False)) == EMPTY + USER + kept + USER
    options = {"truncate_history_thinking": False}
    assert template.render_template(Nemotron3().template(), messages, **options) == (
        EMPTY + USER + kept + USER
    )


def test_a_turn_without_reasoning_has_empty_tags_right_before_its_text():
    turn = {"role": "assistant", "content": " 5 "}
    assert rendered([ASK, turn]).endswith("<|im_start|>assistant\n<think></think> 5<|im_end|>\n")


def test_a_budget_stands_at_the_end_of_the_last_user_message():
    asked = "2+3?\n\n{thinking token budget: 64}<|im_end|>\n"
    text = rendered([ASK, ANSWER, ASK], Nemotron3(budget=64))
    assert text.endswith("<|im_start|>user\n" + asked)
    assert text.count("budget") == 1
    source = Nemotron3().template()
    assert template.render_template(source, [ASK], reasoning_budget=64).endswith(asked)


@pytest.fixture(scope="module")
def tokenizer():
    return chat.new_tokenizer(["why do you think so, add it all"] * 3, 300, format="nemotron3")


def spans(tokenizer, messages, **options):
    encoded = chat.encode(tokenizer, messages, format="nemotron3", **options)
    text, last = [], False
    for id, trained in zip(encoded.ids, encoded.mask, strict=True):
        if trained:
            text += [tokenizer.decode([id])] if last else ["\0", tokenizer.decode([id])]
        last = trained
    return "".join(text).split("\0")[1:]


def test_the_tag_that_the_prompt_opens_does_not_train_and_the_closing_one_does(tokenizer):
    assert spans(tokenizer, [ASK, ANSWER]) == ["why\n</think>\n5<|im_end|>"]
    assert spans(tokenizer, [ASK, {"role": "assistant", "content": "5"}], thinking=False) == [
        "5<|im_end|>"
    ]


def test_reasoning_does_not_train_under_a_prompt_that_forbids_it(tokenizer):
    assert spans(tokenizer, [ASK, ANSWER], thinking=False) == ["\n5<|im_end|>"]


def test_what_is_left_of_erased_reasoning_does_not_train_but_the_content_does(tokenizer):
    assert spans(tokenizer, [ASK, ANSWER, ASK]) == ["5<|im_end|>"]
    assert spans(tokenizer, [ASK, USE, FIVE, ASK]) == [f"\n{CALL}<|im_end|>"]


def test_a_closing_tag_inside_the_reasoning_stays_text(tokenizer):
    turn = {**ANSWER, "reasoning_content": "a</think>b"}
    encoded = chat.encode(tokenizer, [ASK, turn], format="nemotron3")
    at = [i for i, id in enumerate(encoded.ids) if id == tokenizer.id("</think>")]
    assert [tokenizer.decode(encoded.ids[i:]) for i in at] == ["</think>\n5<|im_end|>\n"]
    assert tokenizer.decode(encoded.ids) == rendered([ASK, turn])


def call(*pairs: tuple[str, str], name: str = "add") -> str:
    inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in pairs)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


A = ("a", "1")
GOOD = {
    call(A): {"a": 1},
    call(A, ("s", "\ntwo\nlines\n")): {"a": 1, "s": "\ntwo\nlines\n"},
    call(A, ("s", "")): {"a": 1, "s": ""},
    call(A, ("s", "True")): {"a": 1, "s": "True"},
    call(A, ("b", "True"), ("x", "None")): {"a": 1, "b": True, "x": None},
    call(A, ("b", "false"), ("x", "1.5")): {"a": 1, "b": False, "x": 1.5},
    call(A, ("o", '{"k": [1]}'), ("free", "loose")): {"a": 1, "o": {"k": [1]}, "free": "loose"},
    "<tool_call><function=add><parameter=a>1</parameter></function></tool_call>": {"a": 1},
}
BAD = {
    call(): "argument 'a' missing",
    call(A, A): "'a' given twice",
    call(("a", "one")): "'a' is not JSON of type integer",
    call(("a", "True")): "'a' is not of type integer",
    call(A, name="sub"): "unknown tool 'sub'",
    call(A, name=""): "no name",
    call(A).replace("</parameter>", ""): "<parameter=a> never closes",
    call(A).replace("</function>", ""): "</function> expected before",
    call(A).replace("<function=add>", "add"): "<function=NAME> expected before",
    call(A).replace("</function>", "</function>x"): "</function> expected before",
    call(A).replace("</tool_call>", ""): "<tool_call> never closes",
    call(A) + "more": "text after a tool call",
    call(A) + "</s>": "</s> after a tool call",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_well_formed_call_is_taken_apart(text):
    assert parse(text, TOOLS, format="nemotron3") == Message(tool_calls=[Call("add", GOOD[text])])


@pytest.mark.parametrize("text", BAD, ids=BAD.values())
def test_what_breaks_the_format_is_reported_and_never_raised(text):
    problems = parse(text, TOOLS, format="nemotron3").problems
    assert any(BAD[text] in problem for problem in problems)


def test_a_reply_under_an_open_tag_starts_in_the_reasoning():
    options = {"opened": chat.opened(thinking=True, format="nemotron3"), "format": "nemotron3"}
    assert parse("why\n</think>\n5<|im_end|>", **options) == Message("why", "5", end="<|im_end|>")
    options["opened"] = chat.opened(thinking=False, format="nemotron3")
    assert parse("5<|im_end|>", **options) == Message("", "5", end="<|im_end|>")
