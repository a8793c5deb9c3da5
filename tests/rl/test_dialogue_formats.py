"""A dialogue in every chat format: what is sampled and answered spells the whole conversation."""

import pytest

from etude.errors import EtudeError
from etude.rl.dialogue import Dialogue
from etude.rl.environment import Start
from etude.text import chat
from etude.text.format import normalise

ASK = {"role": "user", "content": "2+3?"}
SCHEMA = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}
TOOLS = [{"type": "function", "function": SCHEMA}]


@pytest.mark.parametrize("name", chat.FORMATS)
def test_turns_and_results_add_up_to_the_conversation_that_was_spoken(name):
    of = chat.FORMATS[name]
    mode = of.modes[0]
    tokenizer = chat.new_tokenizer(["add the numbers"] * 3, 340, format=name)
    dialogue, start = Dialogue(tokenizer, name), Start([ASK], TOOLS, mode)
    call = {"id": "functions.add:0", "function": {"name": "add", "arguments": {"a": 2}}}
    turn = {"role": "assistant", "content": "so", "tool_calls": [call]}
    turn |= {"reasoning_content": "why"} if mode else {}
    ids = dialogue.opening(start)
    before = tokenizer.decode(ids)
    spoken = chat.render([ASK, turn], tools=TOOLS, thinking=mode, format=name)
    own = spoken.removeprefix(before).removesuffix(of.after)
    own += "" if of.closed else of.terminator(normalise([turn])[0])
    sampled = tokenizer.encode(own, special=True)
    assert sampled[-1] in dialogue.stop
    reply = dialogue.read(sampled, start)
    assert (reply.content, reply.reasoning, reply.problems) == ("so", "why" if mode else "", [])
    asked = reply.tool_calls[0]
    result = {"role": "tool", "content": "5", "tool_call_id": asked.id or asked.name}
    ids += sampled + dialogue.observation([result], start)
    whole = [ASK, reply.chat(), result]
    options = {"tools": TOOLS, "thinking": mode, "generation_prompt": True, "format": name}
    assert tokenizer.decode(ids) == chat.render(whole, **options)


def test_a_system_without_a_chat_format_cannot_be_asked():
    tokenizer = chat.new_tokenizer(["add"], 300, format=None)
    dialogue = Dialogue(tokenizer, None)
    assert dialogue.stop == {tokenizer.id("<|endoftext|>")}
    with pytest.raises(EtudeError, match="this system has no chat format"):
        dialogue.opening(Start([ASK]))
