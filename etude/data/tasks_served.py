"""Questions for two public MCP servers: clocks of the world, and a small git repository.

Worked results are computed here and equal what the servers say once the environment has cut hashes
and dates out (`etude.rl.mcp_worlds`); tests compare the two.
"""

import random
from hashlib import sha1
from typing import Any

from etude.data.tasks_base import Call, Exact, Item
from etude.data.tasks_tool import WORDS

ZONES = {  # minutes before UTC; only zones whose clocks are never changed
    "UTC": 0,
    "Asia/Tokyo": 540,
    "Asia/Dubai": 240,
    "Asia/Kolkata": 330,
    "Asia/Bangkok": 420,
    "Africa/Lagos": 60,
    "Africa/Nairobi": 180,
    "America/Lima": -300,
}


class Clock(Exact):
    """`16:30 Asia/Tokyo in UTC?`, and the same into two zones; the answer counts."""

    name = "mcp:time"
    levels = 2

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a time to convert to `level + 1` zones."""
        source, *targets = rng.sample(list(ZONES), level + 2)
        minute = rng.randrange(0, 1440, 5)
        calls = []
        for target in targets:
            result = _clock(minute - ZONES[source] + ZONES[target])
            asked = {"source_timezone": source, "time": _clock(minute), "target_timezone": target}
            calls.append(Call("convert_time", asked, result))
        question = f"{_clock(minute)} {source} in {' and '.join(targets)}?"
        answer = " ".join(call.result for call in calls)
        tools, data = ("convert_time",), {"asked": True, "after": {}}
        return Item(self.name, level, question, answer, "", tools, tuple(calls), data)


def _clock(minute: int) -> str:
    return f"{minute // 60 % 24:02}:{minute % 60:02}"


class Commits(Exact):
    """A repository of two commits and a change: which file was committed last; commit the change.

    Level 0 asks, level 1 names the changed file, level 2 leaves it to be found.
    """

    name = "mcp:git"
    levels = 3

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a question or a commit to be made."""
        first, last, message, old, new, draft, done = rng.sample(WORDS, 7)
        message, done = f"{message} {rng.choice(WORDS)}", f"{done} {rng.choice(WORDS)}"
        file, changed = f"{first}.txt", f"{last}.txt"
        commits = [["start", {file: old, changed: old}], [message, {file: new}]]
        start: dict[str, Any] = {"commits": commits, "changed": {changed: draft} if level else {}}
        after = {"log": [message, "start"], "files": {file: _blob(new), changed: _blob(old)}}
        patch = f"--- a/{{0}}\n+++ b/{{0}}\n@@ -1 +1 @@\n-{old}\n+{{1}}"
        if not level:
            shown = f"{message}\n\n{patch.format(file, new)}"
            calls = [Call("git_show", {"revision": "HEAD"}, shown)]
            question, answer = f"which file did the last commit, {message}, touch?", file
        else:
            staged = Call("git_add", {"files": [changed]}, "Files staged successfully")
            stored = Call("git_commit", {"message": done}, "Changes committed successfully")
            seen = f"Unstaged changes:\n{patch.format(changed, draft)}"
            calls = [staged, stored]
            if level == 2:
                calls.insert(0, Call("git_diff_unstaged", {}, seen))
            named = changed if level == 1 else "the change"
            question, answer = f"commit {named} as {done}", "done"
            after["log"] = [done, message, "start"]
            after["files"] = {file: _blob(new), changed: _blob(draft)}
        tools = tuple(dict.fromkeys(call.name for call in calls))
        data = {"asked": not level, "start": start, "after": after | {"left": []}}
        key = f"{question} {start}"
        return Item(self.name, level, question, answer, "", tools, tuple(calls), data, key)


def _blob(word: str) -> str:
    """Name of a file's content in git; a file here holds one word and a line break."""
    content = f"{word}\n".encode()
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()
