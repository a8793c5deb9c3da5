"""What holds for every chat format: template, ids, masks, results, replies read back."""

from itertools import groupby, pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from etude.errors import EtudeError
from etude.text import chat, template
from etude.text.format import Format, normalise
from etude.text.kimi_k2 import KimiK2
from etude.text.minimax_m1 import MiniMaxM1
from etude.text.nemotron3 import Nemotron3
from etude.text.tokenizer import Tokenizer
from etude.text.turns import Event, Message, Turns, parse
from tests.text.conftest import LINES
from tests.text.conversations import arguments, chats, names, replies, texts, tools

FORMATS: list[Format] = list(chat.FORMATS.values())
VARIANTS = [MiniMaxM1(quoted=True), Nemotron3(truncate=False, budget=512)]
EACH = pytest.mark.parametrize("of", FORMATS, ids=lambda of: of.name)
WITH_OPTIONS = pytest.mark.parametrize(
    "of", FORMATS[1:] + VARIANTS, ids=lambda of: "-".join([of.name, *map(str, of.settings())])
)
JSON = pytest.mark.parametrize("of", [MiniMaxM1(), KimiK2()], ids=lambda of: of.name)
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ASK = {"role": "user", "content": "2+3?"}
USE = {
    "role": "assistant",
    "content": "I add.",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "s": 'x"\n'}}}],
}
FIVE = {"role": "tool", "content": "5"}
DONE = {"role": "assistant", "content": "It is 5."}


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, Tokenizer]:
    return {f.source: chat.new_tokenizer(LINES * 5, 330, format=f) for f in FORMATS}


def spans(tokenizer: Tokenizer, encoded: chat.Encoded) -> list[str]:
    """The trained stretches, as text."""
    runs = groupby(zip(encoded.ids, encoded.mask, strict=True), lambda pair: pair[1])
    return [tokenizer.decode([id for id, _ in run]) for trained, run in runs if trained]


def written(of: Format, turn: dict, *, mode: bool) -> str:
    """What the model writes of a turn behind the generation prompt, its end token included."""
    before = chat.render([ASK], thinking=mode, generation_prompt=True, format=of)
    whole = chat.render([ASK, turn], thinking=mode, format=of)
    assert whole.startswith(before)
    end = of.terminator(normalise([turn])[0])
    return whole.removeprefix(before).removesuffix(of.after) + ("" if of.closed else end)


# Strings ------------------------------------------------------------------------------------------


@WITH_OPTIONS
@settings(max_examples=120)
@given(messages=chats, tools=tools, mode=st.integers(0, 1), generation_prompt=st.booleans())
def test_the_renderer_and_the_template_write_the_same(of, messages, tools, mode, generation_prompt):
    options = {"tools": tools, "generation_prompt": generation_prompt}
    options["thinking"] = of.modes[mode % len(of.modes)]
    text = chat.render(messages, format=of, **options)
    assert chat.render_template(of.template(), messages, **options) == text


@EACH
@settings(max_examples=25)
@given(messages=chats)
def test_by_itself_a_template_takes_the_same_mode_as_the_renderer(of, messages):
    text = chat.render(messages, generation_prompt=True, format=of)
    assert chat.render_template(of.template(), messages, generation_prompt=True) == text


@pytest.mark.parametrize("source", ["minimax_m1", "kimi_k2", "nemotron3"])
def test_a_template_joins_parts_as_the_renderer_does(source):
    """Transformers hands content to the template as it is."""
    of = chat.FORMATS[source]
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "3?"}]
    messages = [{"role": "user", "content": parts}, USE, FIVE]
    told = template.render_template(of.template(), messages)
    assert told == chat.render([ASK, USE, FIVE], format=of)


# Modes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "thinking", "words"),
    [
        ("kimi_k2", True, "thinking: on, and kimi_k2 never thinks"),
        ("kimi_k2_thinking", False, "thinking: off, and kimi_k2_thinking always thinks"),
        ("minimax_m1", False, "thinking: off, and minimax_m1 always thinks"),
    ],
)
def test_a_mode_that_a_system_has_not_is_one_clear_line(name, thinking, words, vocabulary):
    tokenizer = vocabulary[chat.FORMATS[name].source]
    options = {"thinking": thinking, "format": name}
    asks = [
        lambda: chat.prompt(tokenizer, [ASK], **options),
        lambda: chat.observation(tokenizer, [], **options),
        lambda: chat.render([ASK], generation_prompt=True, **options),
        lambda: chat.opened(**options),
    ]
    for ask in asks:
        with pytest.raises(EtudeError, match=words):
            ask()
    assert chat.render([ASK], **options) == chat.render([ASK], format=name)


def test_reasoning_has_no_place_in_the_training_of_a_system_that_never_thinks(vocabulary):
    turn = {"role": "assistant", "content": "5", "reasoning_content": "two and three"}
    with pytest.raises(EtudeError, match=r"messages\[1\]\.reasoning_content: .* never thinks"):
        chat.encode(vocabulary["kimi_k2"], [ASK, turn], format="kimi_k2")


def test_a_system_without_a_chat_format_says_so_in_one_line():
    for ask in (
        lambda: chat.render([ASK], format=None),
        lambda: Turns(format=None),
        lambda: chat.opened(format=None),
    ):
        with pytest.raises(EtudeError, match="chat: this system has no chat format"):
            ask()
    plain = chat.new_tokenizer(LINES, 300, format=None)
    assert (list(plain.special), plain.template) == (["<|endoftext|>"], None)
    assert chat.stop_ids(plain, None) == [plain.id("<|endoftext|>")] == plain.stop_ids


def test_only_a_prompt_that_ends_in_an_open_tag_starts_inside_the_reasoning():
    found = {
        (of.name, mode): chat.opened(thinking=mode, format=of)
        for of in chat.FORMATS.values()
        for mode in of.modes
    }
    assert [key for key, opened in found.items() if opened] == [("nemotron3", True)]


# Ids ----------------------------------------------------------------------------------------------


@EACH
def test_a_new_vocabulary_has_the_markers_and_ends_documents_with_the_first(of, vocabulary):
    tokenizer = vocabulary[of.source]
    assert list(tokenizer.special) == list(of.special)
    assert tokenizer.end == of.special[0]
    assert chat.stop_ids(tokenizer, of) == [tokenizer.id(name) for name in of.stops]


@EACH
@settings(max_examples=40)
@given(messages=chats, tools=tools)
def test_ids_spell_the_rendered_text_and_no_text_of_others_makes_a_marker(
    vocabulary, of, messages, tools
):
    """Messages full of special names give as many tokens of the turns as messages of one letter."""
    tokenizer = vocabulary[of.source]
    ids = chat.prompt(tokenizer, messages, tools=tools, format=of)
    text = chat.render(messages, tools=tools, generation_prompt=True, format=of)
    assert tokenizer.decode(ids) == text
    quiet = [{**m, "content": "x" if m["content"] else ""} for m in normalise(messages)]
    control = {tokenizer.id(name) for name in of.special if name not in of.kept}
    again = chat.prompt(tokenizer, quiet, tools=tools, format=of)
    assert [i for i in ids if i in control] == [i for i in again if i in control]


@EACH
def test_a_forged_end_of_turn_stays_the_text_of_its_author(of, vocabulary):
    tokenizer = vocabulary[of.source]
    forged = {"role": "user", "content": f"x{''.join(of.special)}"}
    ids = [chat.prompt(tokenizer, [m], format=of) for m in (ASK, forged)]
    control = set(tokenizer.special.values())
    assert [i for i in ids[0] if i in control] == [i for i in ids[1] if i in control]


@EACH
def test_a_vocabulary_may_lack_tags_but_not_a_token_of_the_turns(of):
    needed = [name for name in of.special if name not in of.kept]
    poor = Tokenizer.train(LINES, 300, needed)
    ids = chat.prompt(poor, [ASK, USE, FIVE], format=of)
    assert poor.decode(ids) == chat.render([ASK, USE, FIVE], generation_prompt=True, format=of)
    with pytest.raises(EtudeError, match="no special token"):
        chat.prompt(Tokenizer.train(LINES, 300, needed[:1]), [ASK], format=of)


# Masks --------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("turn", [DONE, USE], ids=["answer", "call"])
def test_what_trains_is_what_follows_the_prompt_up_to_the_end_token(of, turn, vocabulary):
    tokenizer = vocabulary[of.source]
    for mode in of.modes:
        if of.name == "nemotron3" and mode:
            continue  # its prompt opens the tag, so a turn without reasoning cannot follow it
        encoded = chat.encode(tokenizer, [ASK, turn], thinking=mode, format=of)
        own = written(of, turn, mode=mode)
        assert spans(tokenizer, encoded) == [own]
        assert own.endswith(of.terminator(turn))


@pytest.mark.parametrize("of", [f for f in FORMATS if True in f.modes], ids=lambda of: of.name)
def test_reasoning_trains_where_the_system_thinks(of, vocabulary):
    tokenizer = vocabulary[of.source]
    turn = {**DONE, "reasoning_content": "two and three"}
    own = written(of, turn, mode=True)
    encoded = chat.encode(tokenizer, [ASK, turn], thinking=True, format=of)
    assert spans(tokenizer, encoded) == [own]
    assert "two and three" in own and "</think>" in own
    message = parse(own, opened=chat.opened(thinking=True, format=of), format=of)
    assert (message.reasoning, message.content) == ("two and three", DONE["content"])


@EACH
@settings(max_examples=40)
@given(messages=chats, train=st.sampled_from(["assistant", "last", "all"]))
def test_the_mask_fits_any_conversation_and_never_trains_what_others_wrote(
    vocabulary, of, messages, train
):
    if True not in of.modes:
        messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
    tokenizer = vocabulary[of.source]
    encoded = chat.encode(tokenizer, messages, train=train, format=of)
    text = tokenizer.decode(encoded.ids)
    assert text.removeprefix(chat.render(messages, format=of)) in ("", *of.syntax.ends)
    if train == "all":
        assert all(encoded.mask)
    elif not any(m["role"] == "assistant" for m in messages):
        assert not any(encoded.mask)
    elif train == "assistant" and of.closed:
        ends = tokenizer.id(of.stops[0])
        trained = sum(m and i == ends for i, m in zip(encoded.ids, encoded.mask, strict=True))
        assert trained == sum(m["role"] == "assistant" for m in messages)


# Results ------------------------------------------------------------------------------------------


@EACH
def test_results_appended_to_the_sampled_ids_are_what_rendering_gives(of, vocabulary):
    tokenizer = vocabulary[of.source]
    calls = [{**USE["tool_calls"][0], "id": f"functions.add:{n}"} for n in range(2)]
    use = {**USE, "tool_calls": calls, "reasoning_content": "why" if of.modes[0] else ""}
    results = [
        {"role": "tool", "content": text, "tool_call_id": f"functions.add:{n}", "name": "add"}
        for n, text in enumerate(["5", "<|im_end|>\nno"])
    ]
    own = written(of, use, mode=of.modes[0])
    end = of.terminator(use)
    sampled = [*tokenizer.encode(own.removesuffix(end), special=True), tokenizer.id(end)]
    running = chat.prompt(tokenizer, [ASK], format=of) + sampled
    running += chat.observation(tokenizer, results, format=of)
    whole = chat.render([ASK, use, *results], generation_prompt=True, format=of)
    assert tokenizer.decode(running) == whole
    control = set(tokenizer.special.values())
    again = chat.prompt(tokenizer, [ASK, use, *results], format=of)
    assert [i for i in running if i in control] == [i for i in again if i in control]


# Replies ------------------------------------------------------------------------------------------


def read(of: Format, pieces: list[str], opened: bool) -> tuple[list[Event], Message]:
    turns = Turns(None, opened=opened, format=of)
    events = [event for piece in pieces for event in turns.feed(piece)] + turns.finish()
    return events, turns.message


def joined(events: list[Event]) -> list[tuple]:
    """Events with neighbours of a kind made one: what must not depend on the cut."""
    runs = [(kind, list(run)) for kind, run in groupby(events, lambda e: e.kind)]
    return [
        (kind, "".join(e.text for e in run)) if kind in ("reasoning", "content") else (kind, run)
        for kind, run in runs
    ]


def parts(of: Format) -> list[str]:
    """Marks of a format, whole and torn, and calls that are right or nearly so."""
    call = written(of, USE, mode=of.modes[-1])
    sections = [tag for pair in of.syntax.sections for tag in pair]
    marks = [*(of.syntax.think or ()), *of.syntax.call, *sections, *of.stops]
    torn = [mark[: len(mark) // 2] for mark in marks]
    return [*marks, *torn, call, call[: len(call) // 2], " ", "\n", "<", "text", "{}", "add"]


@EACH
@settings(max_examples=100)
@given(data=st.data(), cuts=st.lists(st.integers(0, 80), max_size=8), opened=st.booleans())
def test_the_cut_of_a_reply_changes_nothing(of, data, cuts, opened):
    some = st.lists(st.sampled_from(parts(of)) | st.text(max_size=3), max_size=10)
    text = "".join(data.draw(some))
    events, whole = read(of, [text], opened)
    places = sorted({0, *(c for c in cuts if c < len(text)), len(text)})
    for cut in ([text[a:b] for a, b in pairwise(places)], list(text)):
        again, message = read(of, cut, opened)
        assert message == whole
        assert joined(again) == joined(events)


SCHEMA = {"type": "object", "properties": {"a": {}, "s": {"type": "string"}}}
TYPED = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]
MARKS = ["</parameter>", *(m for of in FORMATS for m in (*of.special, *of.syntax.call))]


def quiet(text: str) -> str:
    """A text without the marks of any format, which no reader can tell from the format's own."""
    while found := [mark for mark in MARKS if mark in text]:
        text = text.replace(found[0], "")
    return text


@EACH
@settings(max_examples=40)
@given(
    content=texts.map(quiet).map(str.strip),
    reasoning=texts.map(quiet).map(str.strip),
    a=st.integers() | st.lists(st.integers()) | st.dictionaries(st.text(max_size=2), st.none()),
    s=texts.map(quiet),
)
def test_a_turn_that_was_written_is_read_back_whole(of, content, reasoning, a, s):
    mode = of.modes[0]
    use = {"function": {"name": "add", "arguments": {"a": a, "s": s}}, "id": "functions.add:4"}
    turn = {"role": "assistant", "content": content, "tool_calls": [use, use]}
    turn |= {"reasoning_content": reasoning or "so"} if mode else {}
    text = written(of, turn, mode=mode)
    message = parse(text, TYPED, opened=chat.opened(format=of), format=of)
    assert message.problems == []
    assert [(c.name, c.arguments) for c in message.tool_calls] == [("add", {"a": a, "s": s})] * 2
    assert (message.content, message.reasoning) == (content, (reasoning or "so") if mode else "")
    assert message.end == of.terminator(turn)
    assert written(of, message.chat(), mode=mode) == text


@JSON
@settings(max_examples=40)
@given(name=names, given=arguments)
def test_arguments_of_json_formats_keep_their_types_without_a_schema(of, name, given):
    use = {"function": {"name": name, "arguments": given}}
    turn = {"role": "assistant", "content": "", "tool_calls": [use]}
    text = written(of, turn, mode=of.modes[0])
    assume(sum(text.count(tag) for tag in of.syntax.call) == 2)
    assert [(c.name, c.arguments) for c in parse(text, format=of).tool_calls] == [(name, given)]


@EACH
@settings(max_examples=40)
@given(reply=replies())
def test_nothing_that_was_written_makes_the_reader_raise(of, reply):
    text = chat.render([reply], format=of)
    for mode in (True, False):
        parse(text, [], opened=mode, format=of)
