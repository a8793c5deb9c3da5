"""Tools called for real, in workers with a time limit: one that hangs harms one rollout.

A thread could not be ended, and a long big-number power holds the interpreter lock; so each call
runs in a forked worker, which is ended when it is late and replaced at the next call.
"""

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

from etude.data.tools import TOOLS, Tool

# what `data.tools.TOOLS` holds: a tool over an item's pages
Opener = Callable[[Mapping[str, str]], Tool]


class Closes(Protocol):
    """Something with processes of its own."""

    def close(self) -> None:
        """End them."""
        ...


Kept = TypeVar("Kept", bound=Closes)


class ToolFailure(Exception):
    """A tool raised or did not answer in time; the message says which."""


class Toolbox:
    """Tools by name, called in workers that can be killed.

    Args:
        tools: name -> what opens the tool over an item's pages.
        seconds: a call that takes longer has failed.

    Attributes:
        calls, failures: how many so far.
    """

    def __init__(self, tools: Mapping[str, Opener] = TOOLS, *, seconds: float = 5.0):
        self.tools, self.seconds = dict(tools), seconds
        self.calls = self.failures = 0
        self._idle: list[_Worker] = []
        self._kept: dict[str, Closes] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def call(
        self, name: str, arguments: Mapping[str, Any], pages: Mapping[str, str] | None = None
    ) -> str:
        """Call a tool, and return what the model gets to read.

        Raises:
            ToolFailure: no such tool, it raised, or it was late.
        """
        return await asyncio.to_thread(self.run, name, arguments, pages)

    def run(
        self, name: str, arguments: Mapping[str, Any], pages: Mapping[str, str] | None = None
    ) -> str:
        """Call a tool and wait for it; as `call`."""
        self.calls += 1
        try:
            if name not in self.tools:
                raise ToolFailure(f"no tool is named {name}")
            worker = self._take()
            reply = worker.ask(name, dict(arguments), dict(pages or {}))
            with self._lock:
                self._idle.append(worker)
            if not reply["ok"]:
                raise ToolFailure(f"{name} raised {reply['text']}")
        except ToolFailure:
            self.failures += 1
            raise
        return reply["text"]

    def keep(self, name: str, make: Callable[[], Kept]) -> Kept:
        """Return what was made under a name, made now if it was not: a sandbox, a server.

        It serves all attempts and ends with the toolbox.
        """
        if name not in self._kept:
            self._kept[name] = make()
        return cast(Kept, self._kept[name])

    def close(self) -> None:
        """End all workers, and what is kept."""
        while self._idle:
            self._idle.pop().end()
        while self._kept:
            self._kept.popitem()[1].close()

    def _take(self) -> "_Worker":
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive():
                    return worker
                worker.end()
        return _Worker(self.tools, self.seconds)


class _Worker:
    """A process that answers calls; forked, since tools may be closures and a start is cheap.

    A tool has no open files but those it opens itself.

    No help of `multiprocessing` in starting it: that ends its children by SIGTERM, which this one
    must outlive, for a signal to the whole group only asks the trainer to stop after its step.
    """

    def __init__(self, tools: Mapping[str, Opener], seconds: float):
        self.seconds = seconds
        self.pipe, theirs = Pipe()
        self.process = os.fork()
        if not self.process:
            try:
                _keep_only(theirs.fileno())
                _serve(tools, theirs, seconds)
            finally:
                os._exit(0)
        theirs.close()

    def alive(self) -> bool:
        return not self.pipe.poll(0)  # nothing is due between calls but the end

    def ask(self, name: str, arguments: dict[str, Any], pages: dict[str, str]) -> dict[str, Any]:
        try:
            self.pipe.send((name, arguments, pages))
            if self.pipe.poll(self.seconds):
                return json.loads(self.pipe.recv())
        except (EOFError, OSError):
            self.end()
            raise ToolFailure(f"{name} ended its process") from None
        self.end()
        raise ToolFailure(f"{name} gave no answer in {self.seconds:g} s")

    def end(self) -> None:
        self.pipe.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)


def _keep_only(number: int) -> None:
    """Close every inherited file but one and the standard three.

    The parent's ends of this pipe and of other workers' are among them: held here, none of the
    workers would see the end of the parent. So are locks and sockets that are not a tool's to hold.
    """
    os.closerange(3, number)
    os.closerange(number + 1, os.sysconf("SC_OPEN_MAX"))


def _serve(tools: Mapping[str, Opener], pipe: Connection, seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what they mean
    with contextlib.suppress(EOFError, OSError):
        while True:
            name, arguments, pages = pipe.recv()
            # should the parent die while a tool hangs, the kernel ends both
            signal.setitimer(signal.ITIMER_REAL, seconds + 1)
            try:
                reply = {"ok": True, "text": tools[name](pages).call(**arguments)}
            except Exception as error:  # whatever a tool does, its rollout alone pays
                reply = {"ok": False, "text": f"{type(error).__name__}: {error}"}
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(json.dumps(reply))
