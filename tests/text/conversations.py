"""Conversations made at random: every role in every order, texts that try to break a format."""

from typing import Any

from hypothesis import strategies as st

HARD = [
    *(
        "",
        " ",
        "\n",
        "a",
        "/nothink",
        " /nothink\n",
        "<think>",
        "</think>",
        "x</think>",
        "<|user|>",
    ),
    *(
        "<|assistant|>",
        "[gMASK]",
        "<tool_call>add\n",
        "</tool_call>",
        "<arg_key>",
        "'it\"s'\\n",
        "{{ 1 }}",
    ),
    *("{% if %}", "é中文🙂", "\r\n", "\u2028", "\x1c", "<|endoftext|>", "<tool_response>", "&lt;"),
    *(
        "<|im_end|>",
        "<|im_start|>",
        "<think>\n",
        "</think>\nb",
        "<end_of_sentence>",
        "<|im_middle|>",
    ),
]
texts = st.lists(st.sampled_from(HARD) | st.text(max_size=6), max_size=5).map("".join)
names = st.sampled_from(["add", "look_up", "é", "a.b"])
values = st.recursive(
    texts
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
arguments = st.dictionaries(st.text(max_size=4), values, max_size=3)
ids = st.sampled_from([None, "", "c1", "functions.add:0", "functions.add:7", "functions.a:b"])
calls = st.builds(
    lambda n, a, i: {"type": "function", "id": i, "function": {"name": n, "arguments": a}},
    *(names, arguments, ids),
)
contents = (
    texts | st.none() | st.lists(texts.map(lambda t: {"type": "text", "text": t}), max_size=2)
)
fields = st.dictionaries(
    st.sampled_from(["type", "description", "enum", "name", "default", "items"]), values, max_size=4
)
parameters = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(names, fields, max_size=2)},
    optional={"required": st.just(["a"]), "$defs": values},
)
tools = st.none() | st.lists(
    st.builds(
        lambda n, d, p: {
            "type": "function",
            "function": {"name": n, "description": d, "parameters": p},
        },
        *(names, texts, parameters),
    ),
    max_size=2,
)


@st.composite
def replies(draw: st.DrawFn) -> dict[str, Any]:
    """A turn of the model; fields of the API may be absent, null or empty."""
    turn: dict[str, Any] = {"role": "assistant", "content": draw(contents)}
    if draw(st.booleans()):
        turn["reasoning_content"] = draw(texts | st.none())
    if draw(st.booleans()):
        turn["tool_calls"] = draw(st.lists(calls, max_size=2))
    return turn


plain = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "user", "tool", "system"]),
    contents,
)
results = st.builds(
    lambda content, id, name: {
        "role": "tool",
        "content": content,
        "tool_call_id": id,
        "name": name,
    },
    *(contents, ids, st.sampled_from([None, "", "add"])),
)
others = plain | results
chats = st.lists(replies() | others, max_size=7)
