"""Judges of agentic conversations: each looks at one thing, and says pass or fail.

Results are never believed: calls are made again, in a world laid out anew.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from etude.data.sim_desk import Desk
from etude.data.synth_chats import Chat
from etude.data.tasks_base import Item

CHANGES = ("git_add", "git_commit")  # calls of which a repository keeps a trace
KNOWN = {"done", "ok", "HEAD"}  # words that need not have been read

Run = Callable[[str, Mapping[str, Any]], str]


def executor(item: Item) -> Run:
    """Return what calls an item's tools: its desk or pages made anew; else the known results."""
    if item.family in ("mcp:desk", "user:desk"):
        desk = Desk.new(":memory:", item.data["start"])
        return lambda name, arguments: getattr(desk, name)(**arguments)
    if item.family.startswith("mcp:"):
        known = {(c.name, json.dumps(c.arguments, sort_keys=True)): c.result for c in item.calls}
        return lambda name, arguments: known.get(
            (name, json.dumps(arguments, sort_keys=True)), "error: not as in the solution"
        )
    tools = {tool.name: tool for tool in item.toolset()}
    return lambda name, arguments: tools[name].call(**arguments)


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a model's conversation with its calls' arguments as objects, without their ids."""
    read = []
    for message in messages:
        if message.get("tool_calls"):
            functions = [call["function"] for call in message["tool_calls"]]
            calls = [
                {"function": {"name": f["name"], "arguments": _object(f["arguments"])}}
                for f in functions
            ]
            message = message | {"tool_calls": calls}
        read.append({key: value for key, value in message.items() if key != "tool_call_id"})
    return read


def _object(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def calls_of(chat: Chat) -> list[tuple[str, dict[str, Any], str | None]]:
    """Return name, arguments and result of each call, in order; None where none followed."""
    found = []
    for i, message in enumerate(chat.messages):
        for k, call in enumerate(message.get("tool_calls", ())):
            after = chat.messages[i + 1 + k] if i + 1 + k < len(chat.messages) else {}
            result = after.get("content") if after.get("role") == "tool" else None
            found.append((call["function"]["name"], call["function"]["arguments"], result))
    return found


def protocol(item: Item, chat: Chat) -> bool:
    """Whether every call is of a tool on offer, with all its arguments of the right types."""
    tools = {tool.name: tool for tool in item.toolset()}
    return chat.messages[-1]["role"] == "assistant" and all(
        result is not None
        and name in tools
        and isinstance(arguments, dict)
        and not tools[name].problem(arguments)
        for name, arguments, result in calls_of(chat)
    )


def errors(item: Item, chat: Chat) -> bool:
    """Whether no call went wrong, and none was made twice that the solution makes once."""
    made = calls_of(chat)
    distinct = {(name, json.dumps(arguments, sort_keys=True)) for name, arguments, _ in made}
    wrong = any((result or "").startswith("error:") for *_, result in made)
    return not wrong and (len(distinct) == len(made) or len(made) <= len(item.calls))


def grounded(item: Item, chat: Chat) -> bool:
    """Whether each argument is made of what had been read by then: nothing is guessed."""
    read = set(KNOWN)
    for message in chat.messages:
        for call in message.get("tool_calls", ()):
            if not isinstance(call["function"]["arguments"], dict):
                return False
            values = json.dumps(list(call["function"]["arguments"].values()), ensure_ascii=False)
            if not set(_words(values)) <= read:
                return False
        if message["role"] != "assistant":
            read |= set(_words(message["content"] or ""))
    return True


def state(item: Item, chat: Chat) -> bool:
    """Whether the calls, made again, answer the same and leave what the solution leaves."""
    if not protocol(item, chat):
        return False
    made = calls_of(chat)
    if item.family in ("mcp:desk", "user:desk"):
        desk = Desk.new(":memory:", item.data["start"])
        try:
            told = [getattr(desk, name)(**arguments) for name, arguments, _ in made]
            return told == [result for *_, result in made] and desk.state() == item.data["after"]
        finally:
            desk.close()
    run = executor(item)
    if any(run(name, arguments) != result for name, arguments, result in made):
        return False
    changed = [(name, arguments) for name, arguments, _ in made if name in CHANGES]
    return changed == [(c.name, c.arguments) for c in item.calls if c.name in CHANGES]


def answer(item: Item, chat: Chat) -> bool:
    """Whether the last answer is made of what was read, and right where something is asked."""
    said = (chat.messages[-1].get("content") or "").strip()
    read = {w for m in chat.messages[:-1] if m["role"] != "assistant" for w in _words(m["content"])}
    asked = item.data.get("asked", item.family != "user:desk")
    return bool(said) and set(_words(said)) <= read | KNOWN and (said == item.answer or not asked)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w:]+", text)


JUDGES: dict[str, Callable[[Item, Chat], bool]] = {
    "protocol": protocol,
    "errors": errors,
    "grounded": grounded,
    "state": state,
    "answer": answer,
}
