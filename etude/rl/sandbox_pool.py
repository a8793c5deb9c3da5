"""Warm workers for work that may hang, flood or crash: asked one request at a time, replaced."""

import contextlib
import itertools
import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from etude.errors import EtudeError

WORKER = Path(__file__).with_name("sandbox_worker.py")
GRACE = 2.0  # seconds after a child's own limit, before its worker is ended with it
START = 60.0  # seconds a worker has to get ready: imports on a busy machine

End = Literal["done", "late", "flood", "died"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. All of it is our choice: no report publishes its limits.

    Args:
        seconds: wall clock, after which the run is ended whatever it does.
        cpu_seconds: of the processor, so that a busy machine makes no right answer late.
        memory_bytes: address space of each process.
        processes: at once, threads included; None = not limited.
        file_bytes: largest file; all files together get 16 times that.
        open_files: at once.
        output_bytes: of printed text; more ends the run.
        result_bytes: of returned values.
    """

    seconds: float = 5.0
    cpu_seconds: float = 1.0
    memory_bytes: int = 256 << 20
    processes: int | None = 8
    file_bytes: int = 1 << 20
    open_files: int = 32
    output_bytes: int = 1 << 14
    result_bytes: int = 1 << 16


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request.

    Args:
        end: `done`; `late` (wall clock or processor); `flood` (it said too much); `died`.
        values: the JSON values that were answered before the end.
        text: what was printed.
    """

    end: End
    values: Sequence[Any]
    text: str


class Pool:
    """Workers of one kind, as many as there are processors, started when first needed.

    Args:
        what: how errors call it, e.g. `sandbox`.
        command: the start of a worker's command line, up to the interpreter and its options.
        handler: text that defines `handle(request)`, see `sandbox_worker`.
        limits: of each request.
        alone: whether a worker is in a process namespace of its own.
        uid: of worker number n, or None.
        env: environment of the workers.
    """

    def __init__(
        self,
        what: str,
        command: Sequence[str],
        handler: str,
        limits: Limits,
        *,
        alone: bool = False,
        uid: Callable[[int], int | None] = lambda number: None,
        env: Mapping[str, str] | None = None,
    ):
        self.what, self.command, self.limits = what, list(command), limits
        self.config = {"handler": handler, "limits": asdict(limits), "alone": alone}
        self.uid, self.env, self.started = uid, dict(env or {}), 0
        self._count = itertools.count()
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        # a sandbox ends with the thread that started it, so that thread must last
        self._starter = ThreadPoolExecutor(1, thread_name_prefix=what)

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """Have one request answered; blocks, for `limits.seconds` and a little at most.

        Raises:
            EtudeError: no worker can be started.
        """
        data = json.dumps(request).encode()
        with self._slots:
            worker = self._take()
            told = worker.ask(data, self.limits.seconds + GRACE)
            if told is None or told["last"]:
                worker.end()
            else:
                with self._lock:
                    self._idle.append(worker)
        if told is None:
            return Reply("died", (), "")
        return Reply(told["end"], _parsed(told["lines"]), told["text"])

    def close(self) -> None:
        """End all workers."""
        while self._idle:
            self._idle.pop().end()
        self._starter.shutdown(wait=False)

    def _take(self) -> "_Worker":
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                worker.end()
        return self._starter.submit(self._start).result()

    def _start(self) -> "_Worker":
        number = next(self._count)
        config = {**self.config, "uid": self.uid(number)}
        command = [*self.command, "-c", WORKER.read_text(), json.dumps(config)]
        try:
            worker = _Worker(command, self.env)
        except OSError as error:
            raise EtudeError(self.what, f"{command[0]}: {error.strerror}", code=1) from error
        if worker.line(START) is None:
            told = worker.complaint()
            raise EtudeError(self.what, f"cannot start: {told}", code=1)
        self.started += 1
        return worker


def _parsed(lines: Sequence[str]) -> list[Any]:
    """Read the lines up to the first that is no JSON, which the code wrote itself."""
    values = []
    with contextlib.suppress(ValueError, RecursionError):
        for line in lines:
            values.append(json.loads(line))
    return values


class _Worker:
    """One process, and the line to it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]):
        pipe = subprocess.PIPE
        # a session of its own: an interrupt asks the trainer to stop, not the work in hand
        options = {"env": dict(env), "cwd": "/", "bufsize": 0, "start_new_session": True}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, **options)
        self._rest = b""

    def ask(self, data: bytes, seconds: float) -> dict[str, Any] | None:
        """Send a request and return the account of it; None where the worker is lost."""
        assert self.process.stdin
        data = len(data).to_bytes(4, "big") + data
        try:
            while data:
                data = data[self.process.stdin.write(data) or 0 :]
        except OSError:
            return None
        return self.line(seconds)

    def line(self, seconds: float) -> dict[str, Any] | None:
        """Return the next line; None when it is late, or the worker gone."""
        assert self.process.stdout
        deadline, poll = time.monotonic() + seconds, select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            if not poll.poll(left * 1000):
                return None
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def complaint(self) -> str:
        """End the worker and return the last line of what it wrote to stderr."""
        self.process.kill()
        _, told = self.process.communicate()
        lines = told.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
