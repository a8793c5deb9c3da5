"""Turns of a conversation in the shape that `etude.text.chat` takes."""

from collections.abc import Mapping
from typing import Any


def user(text: str) -> dict[str, Any]:
    """Return a turn of the user."""
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> dict[str, Any]:
    """Return a final turn of the model."""
    return {"role": "assistant", "content": text, "reasoning_content": reasoning}


def exchange(name: str, arguments: Mapping[str, Any], result: str) -> list[dict[str, Any]]:
    """Return a tool call of the model and the tool's answer."""
    function = {"name": name, "arguments": dict(arguments)}
    return [
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": result},
    ]
