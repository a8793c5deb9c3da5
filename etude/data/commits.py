"""Two releases of a package as change records: what the change log says, then the difference."""

import difflib
import re
from collections.abc import Iterator


def release_records(
    old: dict[str, str], new: dict[str, str], log: str
) -> Iterator[tuple[str, str]]:
    """Yield (path, record) for each Python file of both releases that differs.

    A record opens with the new entries of the change log that name something the difference touches
    (they carry issue numbers), and goes on with the unified difference.

    Args:
        old: path -> text of the earlier release.
        new: path -> text of the later one.
        log: path of the change log inside both.
    """
    entries = _new_entries(old.get(log, ""), new.get(log, ""))
    for path in sorted({*old} & {*new}):  # what only one archive packs was not changed but left out
        before, after = old[path], new[path]
        if path.endswith(".py") and before != after:
            lines = difflib.unified_diff(
                before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", lineterm="", n=3
            )
            difference = "\n".join(lines)
            told = [entry for entry in entries if _touches(entry, difference)]
            yield path, "\n".join([*(f"- {entry}" for entry in told), "", difference]).strip()


def _new_entries(old: str, new: str) -> list[str]:
    """Return the items of the later change log that the earlier one lacks, one line each."""
    seen = set(_items(old))
    return [item for item in _items(new) if item not in seen]


def _items(log: str) -> list[str]:
    items = re.findall(r"^[-*] +(.*(?:\n[ \t]+\S.*)*)", log, flags=re.M)
    return [re.sub(r":(issue|pr):`(\d+)`", r"#\2", " ".join(item.split())) for item in items]


def _touches(entry: str, difference: str) -> bool:
    """Whether the last word of a piece of code in the entry stands on a changed line."""
    changed = "\n".join(re.findall(r"^[-+](?![-+]).*$", difference, flags=re.M))
    codes = re.findall(r"``([^`]+)``", entry)
    words = {w[-1] for c in codes if (w := re.findall(r"\w{4,}", c))}
    return any(re.search(rf"\b{re.escape(word)}\b", changed) for word in words)
