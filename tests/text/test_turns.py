"""Replies read back: the same for every cut, whatever the model wrote, in linear time."""

import time
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.errors import EtudeError
from etude.text import chat
from etude.text.format import Call
from etude.text.turns import Event, Message, Turns, parse
from tests.text.conversations import replies, texts

PROPERTIES = {
    "a": {"type": "integer"},
    "s": {"type": "string"},
    "l": {"type": ["array", "null"]},
    "x": {"type": "number"},
    "b": {"type": "boolean"},
    "free": {},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"properties": PROPERTIES, "required": ["a"]}},
    }
]


def call(name: str, **arguments: str) -> str:
    pairs = "".join(
        f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in arguments.items()
    )
    return f"<tool_call>{name}\n{pairs}</tool_call>"


def joined(events: list[Event]) -> list[tuple]:
    """Events with neighbours of a kind made one: what must not depend on the cut."""
    runs = [(kind, list(run)) for kind, run in groupby(events, lambda e: e.kind)]
    return [
        (kind, "".join(e.text for e in run)) if kind in ("reasoning", "content") else (kind, run)
        for kind, run in runs
    ]


def read(
    pieces: list[str], tools: list | None = TOOLS, opened: bool = False
) -> tuple[list[Event], Message]:
    turns = Turns(tools, opened=opened)
    events = [event for piece in pieces for event in turns.feed(piece)] + turns.finish()
    return events, turns.message


PARTS = [
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    ),
    *(
        "<|user|>",
        "<|observation|>",
        "<|endoftext|>",
        "<thi",
        "<",
        "</",
        "<<think>",
        " ",
        "\n",
        "text",
        "add",
        "add\n",
    ),
    *(
        "a",
        "1",
        '"',
        call("add", a="1"),
        call("add"),
        call("add", a="x", s="</think>"),
        call("nothing"),
    ),
]
replies_of_any_kind = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=12).map(
    "".join
)


@settings(max_examples=600)
@given(
    text=replies_of_any_kind, cuts=st.lists(st.integers(0, 60), max_size=8), opened=st.booleans()
)
def test_the_cut_changes_nothing(text, cuts, opened):
    whole_events, whole = read([text], opened=opened)
    places = sorted({0, *(c for c in cuts if c < len(text)), len(text)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    for cut in (pieces, list(text)):
        events, message = read(cut, opened=opened)
        assert message == whole
        assert joined(events) == joined(whole_events)


@given(text=replies_of_any_kind)
def test_events_add_up_to_the_message_and_every_problem_is_an_event(text):
    events, message = read(list(text))
    moved = max((i for i, e in enumerate(events) if e.kind == "moved"), default=-1)
    said = {
        kind: "".join(e.text for e in events[moved + 1 :] if e.kind == kind)
        for kind in ("reasoning", "content")
    }
    before = "".join(e.text for e in events[: max(moved, 0)] if e.kind == "content")
    assert (before + said["reasoning"], said["content"]) == (message.reasoning, message.content)
    assert [e.call for e in events if e.kind == "call"] == message.tool_calls
    assert [e.text for e in events if e.kind == "problem"] == message.problems


@given(reply=replies())
def test_a_well_formed_reply_read_back_and_written_again_is_the_same_text(reply):
    """Tags inside the texts aside, which no reader can tell from the format's own."""
    text = chat.render([reply]).removeprefix("[gMASK]<sop><|assistant|>")
    message = parse(text)
    inside = any(
        text.count(t) > n
        for t, n in (("<think>", 1), ("</think>", 1), ("<arg_value>", 0), ("<|", 0))
    )
    if message.well_formed and not inside:
        assert chat.render([message.chat()]).removeprefix("[gMASK]<sop><|assistant|>") == text


@given(content=texts.map(str.strip), reasoning=texts.map(str.strip))
def test_a_message_put_back_into_a_conversation_keeps_its_words(content, reasoning):
    message = Message(
        reasoning=reasoning, content=content, tool_calls=[Call("add", {"a": 1, "s": "é"})]
    )
    rendered = chat.render([message.chat()])
    shown = f"\n{content}" if content else ""
    assert rendered == f"[gMASK]<sop><|assistant|>\n<think>{reasoning}</think>{shown}\n" + call(
        "add", a="1", s="é"
    )


GOOD = {
    "\n<think> why\n</think>\nbecause\n" + call("add", a="2", s="3") + "<|observation|>": Message(
        "why", "because", [Call("add", {"a": 2, "s": "3"})], [], "<|observation|>"
    ),
    "no tags at all": Message(content="no tags at all"),
    "the opening tag is missing</think>so": Message("the opening tag is missing", "so"),
    "\n<think></think>\nshort<|user|>": Message(content="short", end="<|user|>"),
    "we speak of <|user|> here": Message(content="we speak of <|user|> here"),
    "a < b and <thing> </p>": Message(content="a < b and <thing> </p>"),
    "<think>a <tool_call> inside</think>b": Message("a <tool_call> inside", "b"),
    "<tool_call>add<arg_key>a</arg_key><arg_value>2</arg_value></tool_call>": Message(
        tool_calls=[Call("add", {"a": 2})]
    ),
    call("add", a="1") + "\n" + call("add", a="2"): Message(
        tool_calls=[Call("add", {"a": 1}), Call("add", {"a": 2})]
    ),
    call("add", a="2.0", l="null", x="1", b="true", free="1", s='"\n1'): Message(
        tool_calls=[Call("add", {"a": 2, "l": None, "x": 1, "b": True, "free": 1, "s": '"\n1'})]
    ),
    call("add", a="-7", free="loose text", l='[1, {"k": "é"}]'): Message(
        tool_calls=[Call("add", {"a": -7, "free": "loose text", "l": [1, {"k": "é"}]})]
    ),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_well_formed_reply_is_taken_apart(text):
    assert parse(text, TOOLS) == GOOD[text]


BAD = {
    "<think>on and on": "<think> never closes",
    "<tool_call>add\n": "<tool_call> never closes",
    "<think>a</think>b</think>": "stray </think>",
    "<think>a</think><think>b</think>c": "stray <think>",
    "a</tool_call>": "stray </tool_call>",
    "first<think>then</think>": "text before the reasoning",
    call("add", a="1") + "and then": "text after a tool call",
    call("add", a="1") + "<|user|>": "<|user|> after a tool call",
    call("add", a="1") + "<|endoftext|>": "<|endoftext|> after a tool call",
    "done<|observation|>": "<|observation|> without a tool call",
    call("sub", a="1"): "unknown tool 'sub'",
    call("add", a="1", c="2"): "unknown argument 'c'",
    call("add", s="1"): "argument 'a' missing",
    call("add", a="two"): "argument 'a' is not JSON of type integer",
    call("add", a="1.5"): "argument 'a' is not of type integer",
    call("add", a="true"): "argument 'a' is not of type integer",
    call("add", a="1", x="NaN"): "argument 'x' is not JSON of type number",
    call("add", a="1", b="1"): "argument 'b' is not of type boolean",
    call("add", a="9" * 5000): "argument 'a' is not JSON",
    call("add", a="1", l="[" * 100_000): "argument 'l' is not JSON",
    call("add", a="1").replace("</arg_value>", ""): "<arg_value> never closes",
    call("add", a="1").replace("<arg_value>", ""): "<arg_value> expected before",
    call("add", a="1").replace("</tool_call>", "x</tool_call>"): "<arg_key> expected before 'x'",
    "<tool_call>add\n"
    + 2 * "<arg_key>a</arg_key><arg_value>1</arg_value>"
    + "</tool_call>": "given twice",
    "<tool_call>\n</tool_call>": "no name",
}


@pytest.mark.parametrize("text", BAD, ids=BAD.values())
def test_what_breaks_the_format_is_reported_and_never_raised(text):
    message = parse(text, TOOLS)
    assert not message.well_formed
    assert any(BAD[text] in problem for problem in message.problems)


def test_an_unknown_tool_is_still_a_call_and_a_malformed_one_is_not():
    assert parse(call("sub", a="1"), TOOLS).tool_calls == [Call("sub", {"a": 1})]
    assert parse(call("add", a="two"), TOOLS).tool_calls == []
    assert parse(call("sub"), None).well_formed
    assert not parse(call("sub"), []).well_formed


def test_a_prompt_that_already_opened_the_tag_starts_in_the_reasoning():
    assert parse("so</think>then", opened=True) == Message("so", "then")
    assert parse("so", opened=True).problems == ["<think> never closes"]


def test_text_appears_as_soon_as_it_cannot_be_part_of_a_tag():
    turns = Turns(TOOLS)
    assert turns.feed("hello ") == [Event("content", "hello")]
    assert turns.feed("<thin") == []
    assert turns.feed("g> ") == [Event("content", " <thing>")]
    assert turns.feed("<tool_call>add") == []
    assert turns.message.content == "hello <thing>"


def test_a_tool_without_a_name_is_refused_when_the_machine_is_made():
    with pytest.raises(EtudeError, match="tools"):
        Turns([{"function": {}}])


@pytest.mark.parametrize(
    "unit",
    ["<", "x", " ", "<think>", "</think>", call("add", a="1"), "<arg_key>k</arg_key><arg_value>"],
)
def test_ten_times_the_text_takes_about_ten_times_as_long(unit):
    """Measured: 8 to 11 times. Work that grows with the square takes 100 times."""

    def seconds(letters: int) -> float:
        text = (
            "<tool_call>" + unit * (letters // len(unit))
            if "arg_value" in unit
            else unit * (letters // len(unit))
        )
        start = time.process_time()
        turns = Turns(TOOLS)
        for at in range(0, len(text), 3):
            turns.feed(text[at : at + 3])
        turns.finish()
        return time.process_time() - start

    small = min(seconds(8_000) for _ in range(3))
    assert seconds(80_000) < 35 * small
