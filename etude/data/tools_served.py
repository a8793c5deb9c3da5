"""Tools that live in MCP servers, as a model is shown them: what the servers list, made short.

The descriptions are written down here, so that conversations can be made without a server; a test
compares them with what the running servers list. Arguments that name an attempt's own database or
folder are filled in by the environment and never shown.
"""

from collections.abc import Mapping
from typing import Any

HIDDEN = ("session", "repo_path", "context_lines")  # filled in, or left at their defaults
KEPT = ("type", "items")  # of what a schema says of an argument

Schema = dict[str, Any]


def terse(name: str, description: str, schema: Mapping[str, Any]) -> Schema:
    """Return one tool of a server's list as a short function description.

    Args:
        name: of the tool.
        description: its own words, of which the first line stays.
        schema: JSON schema of its arguments, of which names and types stay.

    Returns:
        The shape of an OpenAI request. For a model of a few million parameters the full schemas
        are longer than everything else in its context.
    """
    properties = {
        key: {what: of[what] for what in KEPT if what in of}
        for key, of in schema.get("properties", {}).items()
        if key not in HIDDEN
    }
    required = [key for key in schema.get("required", ()) if key in properties]
    parameters = {"type": "object", "properties": properties, "required": required}
    first = (description or name).strip().splitlines()[0]
    function = {"name": name, "description": first, "parameters": parameters}
    return {"type": "function", "function": function}


def _listed(name: str, description: str, **types: Schema) -> Schema:
    return terse(name, description, {"properties": types, "required": list(types)})


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
TEXTS = {"type": "array", "items": TEXT}

SERVED: dict[str, list[Schema]] = {
    "desk": [
        _listed("stock", "Pieces in stock.", item=TEXT),
        _listed("order", "Order pieces.", item=TEXT, count=NUMBER),
        _listed("status", "Show an order.", number=NUMBER),
        _listed("cancel", "Cancel an order.", number=NUMBER),
        _listed("note", "Write a note.", text=TEXT),
    ],
    "time": [
        _listed(
            "convert_time",
            "Convert time between timezones",
            source_timezone=TEXT,
            time=TEXT,
            target_timezone=TEXT,
        ),
    ],
    "git": [
        _listed(
            "git_diff_unstaged", "Shows changes in the working directory that are not yet staged"
        ),
        _listed("git_commit", "Records changes to the repository", message=TEXT),
        _listed("git_add", "Adds file contents to the staging area", files=TEXTS),
        _listed(
            "git_show",
            "Shows the contents of a commit, or of a file or directory given as <revision>:<path>",
            revision=TEXT,
        ),
    ],
}
SCHEMAS: dict[str, Schema] = {
    one["function"]["name"]: one["function"] for tools in SERVED.values() for one in tools
}
