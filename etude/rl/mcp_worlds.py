"""What is behind each MCP server: one database, repository or nothing for each attempt.

A world lays out the start of an item, names it in the calls, cuts out of results what would differ
tomorrow (dates, hashes), and reads the state in the end without asking the server.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.data.sim_desk import Desk
from etude.data.tasks_base import Item
from etude.errors import EtudeError
from etude.rl.mcp_client import Server, program, visible_arguments

Place = Path | None  # what belongs to one attempt


class World:
    """A warm server, and the places of attempts.

    Args:
        seconds: as of `Server`.

    Attributes:
        server: the process, started by its first call.
        calls: made so far.

    Raises:
        EtudeError: the server is not installed.
    """

    kind, module = "time", "mcp_server_time"
    arguments: tuple[str, ...] = ("--local-timezone", "UTC")
    bound = ""  # the argument that names the place

    def __init__(self, *, seconds: float = 5.0):
        command = program(self.kind, self.module, *self.arguments)
        self.server = Server(self.kind, command, env=self.env(), seconds=seconds)
        self.folder = Path(tempfile.mkdtemp(prefix="etude-mcp-"))
        self.calls = 0

    @classmethod
    def check(cls) -> None:
        """Make sure that what the world needs is installed.

        Raises:
            EtudeError: it is not.
        """
        program(cls.kind, cls.module)

    def env(self) -> dict[str, str]:
        """What the server's environment needs."""
        return {}

    def open(self, item: Item) -> Place:
        """Lay out a new attempt's start."""
        return None

    def state(self, place: Place) -> dict[str, Any]:
        """Return what is there now, in the shape of an item's `after`."""
        return {}

    async def call(self, place: Place, tool: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool on an attempt's place.

        Raises:
            ToolFailure, EtudeError: as of `Server.call`.
        """
        self.calls += 1
        bound = {self.bound: str(place)} if self.bound else {}
        return self.view(await self.server.call(tool, visible_arguments(arguments) | bound))

    def view(self, text: str) -> str:
        """The time in the target zone; the rest of the answer is today's date."""
        if text.startswith("error:"):
            return text
        return json.loads(text)["target"]["datetime"][11:16]

    def drop(self, place: Place) -> None:
        """Remove an attempt's place."""

    def close(self) -> None:
        """End the server and remove all places."""
        self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class DeskWorld(World):
    """One database file per attempt (`etude.data.sim_desk`)."""

    kind, module = "desk", "etude.rl.servers.desk"
    arguments = ()
    bound = "session"

    def open(self, item: Item) -> Place:
        """Write the database."""
        place = self.folder / f"{uuid.uuid4().hex}.db"
        Desk.new(str(place), item.data["start"]).close()
        return place

    def state(self, place: Place) -> dict[str, Any]:
        """Read all tables."""
        desk = Desk.opened(str(place))
        try:
            return desk.state()
        finally:
            desk.close()

    def view(self, text: str) -> str:
        """As it is."""
        return text

    def drop(self, place: Place) -> None:
        """Remove the file."""
        if place:
            place.unlink(missing_ok=True)


WHEN = "2024-01-01T00:00:00+0000"
# one author and one moment, so that equal commits have equal names; no settings of this machine
GIT = {
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "a"), ("EMAIL", "a@b"), ("DATE", WHEN))
    },
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "HOME": "/nonexistent",
}
NOISE = re.compile(
    r"^(?:commit [0-9a-f]{40}|Author: .*|Date: .*|diff --git .*|index .*)\n"
    r"| with hash [0-9a-f]{40}",
    re.MULTILINE,
)


class GitWorld(World):
    """One repository per attempt."""

    kind, module = "git", "mcp_server_git"
    arguments = ()
    bound = "repo_path"

    @classmethod
    def check(cls) -> None:
        """Also look for git itself."""
        super().check()
        if shutil.which("git") is None:
            raise EtudeError("environment mcp:git", "no program git", do="install git")

    def env(self) -> dict[str, str]:
        """The author and the moment of commits."""
        return GIT

    def open(self, item: Item) -> Place:
        """Make the commits, then the change."""
        place, start = self.folder / uuid.uuid4().hex, item.data["start"]
        place.mkdir()
        self._git(place, "init", "-q", "-b", "main", "--template=")
        for message, files in start["commits"]:
            _write(place, files)
            self._git(place, "add", ".")
            self._git(place, "commit", "-q", "-m", message)
        _write(place, start["changed"])
        return place

    def state(self, place: Place) -> dict[str, Any]:
        """Return messages, newest first, the files of the last commit, and what is not in it."""
        assert place is not None
        listed = [line.split() for line in self._git(place, "ls-tree", "-r", "HEAD").splitlines()]
        return {
            "log": self._git(place, "log", "--format=%s").splitlines(),
            "files": {name: blob for _, _, blob, name in listed},
            "left": self._git(place, "status", "--porcelain").splitlines(),
        }

    def view(self, text: str) -> str:
        """Without hashes, author and dates, and without blank margins."""
        lines = NOISE.sub("", text).strip().splitlines()
        return "\n".join(line.removeprefix("    ") for line in lines)

    def drop(self, place: Place) -> None:
        """Remove the folder."""
        if place:
            shutil.rmtree(place, ignore_errors=True)

    def _git(self, place: Path, *arguments: str) -> str:
        env = GIT | {"PATH": os.environ.get("PATH", "")}
        done = subprocess.run(
            ["git", *arguments], cwd=place, env=env, capture_output=True, text=True, timeout=30
        )
        if done.returncode:
            raise RuntimeError(f"git {arguments[0]}: {done.stderr.strip()[:200]}")
        return done.stdout


def _write(place: Path, files: Mapping[str, str]) -> None:
    for name, word in files.items():
        (place / name).write_text(f"{word}\n")


WORLDS: dict[str, type[World]] = {world.kind: world for world in (DeskWorld, World, GitWorld)}
