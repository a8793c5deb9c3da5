"""Inside a sandbox: fork a fresh child for each request, watch it, report, and stay warm.

This text is handed to a bare interpreter (`python -c`), so it imports the standard library alone.
The child reads the request, never this process: what one answer was or was given cannot be found
in the memory of the next. A child that leaves a process or a file behind ends the worker with it.
"""

import contextlib
import ctypes
import json
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Handle = Callable[[Any], Iterator[Any]]
FIRST = b"!"  # the child's word that it has a request: from here its time counts
NO_MORE = 77  # a child's exit status when the host closed the line instead
CHUNK = 1 << 16
PR_SET_DUMPABLE = 4


def serve(config: dict[str, Any]) -> None:
    """Answer requests until the host goes away or a child left something behind.

    Args:
        config: `uid` to become first, or None; `handler`, text that defines `handle(request)`, a
            generator of JSON values; `alone`, whether this is a namespace of its own; `limits`.
    """
    become(config["uid"])
    scope: dict[str, Any] = {}
    exec(config["handler"], scope)
    say({"ready": True})
    clean = True
    while clean:
        told = attempt(scope["handle"], config["limits"])
        if told is None:
            return
        clean = not (config["alone"] and leftovers())
        say({**told, "last": not clean})


def become(uid: int | None) -> None:
    """Give up root for good, and let no child look into this process."""
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    with contextlib.suppress(OSError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def say(told: dict[str, Any]) -> None:
    """Send one line to the host."""
    data = json.dumps(told).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def leftovers() -> bool:
    """Return whether a process besides the two of the sandbox, or a file, is there."""
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()}
    return bool(others or os.listdir("/tmp"))


def attempt(handle: Handle, limits: dict[str, Any]) -> dict[str, Any] | None:
    """Fork a child for the next request and return how it ended; None if there is none."""
    results, results_end = os.pipe()
    text, text_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            obey(handle, limits, results_end, text_end)
        finally:
            os._exit(1)
    os.close(results_end)
    os.close(text_end)
    try:
        return watch(child, results, text, limits)
    finally:
        os.close(results)
        os.close(text)


def obey(handle: Handle, limits: dict[str, Any], results: int, text: int) -> None:
    """Be the child: take one request, give up every right, and answer line by line."""
    size = exactly(4)
    if size is None:
        os._exit(NO_MORE)
    request = json.loads(exactly(int.from_bytes(size, "big")) or b"")
    null = os.open("/dev/null", os.O_RDONLY)
    results = os.dup2(results, max(results, text, null) + 1)
    for source, number in ((null, 0), (text, 1), (text, 2), (results, 3)):
        os.dup2(source, number)
    os.closerange(4, 256)
    os.write(3, FIRST)
    confine(limits)
    for value in handle(request):
        data = json.dumps(value).encode() + b"\n"
        while data:
            data = data[os.write(3, data) :]
    sys.stdout.flush()
    os._exit(0)


def exactly(size: int) -> bytes | None:
    """Read so many bytes of the host's line, and not one more; None at its end."""
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            return None
        data += more
    return data


def confine(limits: dict[str, Any]) -> None:
    """Set the limits that the kernel keeps."""
    seconds = math.ceil(limits["cpu_seconds"])
    kept = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if limits["processes"] is not None:
        kept[resource.RLIMIT_NPROC] = limits["processes"] + 2  # this worker and the child
    for kind, most in kept.items():
        resource.setrlimit(kind, (most, most))
    # the kernel counts whole seconds; a child that undoes this one still meets that limit
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])


def watch(child: int, results: int, text: int, limits: dict[str, Any]) -> dict[str, Any] | None:
    """Collect what a child says until it ends, is late, or says too much."""
    said = {results: b"", text: b""}
    most = {results: limits["result_bytes"], text: limits["output_bytes"]}
    for pipe in said:
        os.set_blocking(pipe, False)
    gone = os.pidfd_open(child)
    poll, deadline, end = select.poll(), None, ""
    for number in (results, text, gone):
        poll.register(number, select.POLLIN)
    while not end:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {number for number, _ in poll.poll(left)}
        for pipe in ready & set(said):
            said[pipe] += drain(pipe, most[pipe] + 1 - len(said[pipe]))
            if said[pipe] and deadline is None:
                deadline = time.monotonic() + limits["seconds"]
        flooded = [pipe for pipe in said if len(said[pipe]) > most[pipe]]
        for pipe in flooded:
            said[pipe] = said[pipe][: most[pipe]]
        if flooded:
            end = "flood"
        elif gone in ready:
            end = "done"
        elif deadline is not None and time.monotonic() >= deadline:
            end = "late"
        else:
            for pipe in ready & set(said):
                quiet(poll, pipe)
    if end == "done":  # what was written just before the end
        for pipe in said:
            said[pipe] += drain(pipe, most[pipe] - len(said[pipe]))
    os.close(gone)
    return conclude(child, end, said[results], said[text], deadline)


def drain(pipe: int, most: int) -> bytes:
    """Read what is there, up to `most` bytes."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while len(data) < most and (more := os.read(pipe, min(CHUNK, most - len(data)))):
            data += more
    return data


def quiet(poll: select.poll, pipe: int) -> None:
    """Stop polling a pipe that the child has closed, or the loop would spin."""
    probe = select.poll()
    probe.register(pipe, select.POLLIN)
    if any(event & select.POLLHUP and not event & select.POLLIN for _, event in probe.poll(0)):
        poll.unregister(pipe)


def conclude(
    child: int, end: str, results: bytes, text: bytes, deadline: float | None
) -> dict[str, Any] | None:
    """End the child and its group, and put its account together."""
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if deadline is None:
        return None if status == NO_MORE else {"end": "died", "lines": [], "text": ""}
    if end == "done" and status:
        late = (-signal.SIGPROF, -signal.SIGXCPU)
        # the kernel's own end for a spent second is SIGKILL where soft and hard limit are equal
        end = "late" if status in late or status == -signal.SIGKILL else "died"
    lines = results.removeprefix(FIRST).decode(errors="replace").split("\n")[:-1]
    return {"end": end, "lines": lines, "text": text.decode(errors="replace")}


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
