"""What a model wrote runs shut in: every way out that we know is tried here."""

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from etude.errors import EtudeError
from etude.rl import sandbox as module
from etude.rl.sandbox import Limits, Sandbox, find

TOKEN = 70_000 + os.getpid()  # a limit, by which the processes of this run are known
LIMITS = Limits(seconds=20, cpu_seconds=5, memory_bytes=128 << 20, file_bytes=1 << 16)
LIMITS = replace(LIMITS, result_bytes=TOKEN)


def started(limits):
    """A sandbox; the test is left out only where bubblewrap itself can do nothing."""
    try:
        bare = [find(), "--ro-bind", "/", "/", "--unshare-pid", "--unshare-net", "true"]
    except EtudeError as error:
        pytest.skip(str(error))
    if subprocess.run(bare, capture_output=True).returncode:
        pytest.skip("bubblewrap may not make namespaces here")
    return Sandbox(limits)


@pytest.fixture(scope="module")
def box():
    with started(LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def short():
    """Gives little time, for what would take all there is."""
    with started(replace(LIMITS, seconds=0.5, cpu_seconds=0.2)) as made:
        yield made


def shut_in() -> int:
    """Processes of this test's sandboxes, as the machine sees them."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += f"{TOKEN}".encode() in path.read_bytes() and b"bwrap" not in path.read_bytes()
        except OSError:
            continue
    return found


def test_functions_are_called_and_values_keep_their_types(box):
    run = box.run(
        "def f(*a):\n    print('hi')\n    return a", calls=[("f", [1, (2,), {"a": [3.0]}])]
    )
    assert run.end == "done" and run.clean and run.text == "hi\n"
    assert run.values[0].value == (1, (2,), {"a": [3.0]})


def test_a_call_that_raises_is_one_failure_among_others(box):
    run = box.run("def f(x):\n    return 1 // x", calls=[("f", [0]), ("f", [1]), ("g", [])])
    assert [value.error for value in run.values] == ["ZeroDivisionError", "", "KeyError"]
    assert box.run("x =").program.error == "SyntaxError"


def test_a_warm_worker_serves_many_runs(box):
    box.run("")
    before = box._pool.started
    for number in range(10):
        assert box.run("f = abs", calls=[("f", [-number])]).values[0].value == number
    assert box._pool.started == before


async def test_runs_side_by_side_do_not_wait_for_an_event_loop(box):
    sources = [f"def f():\n    return {n}" for n in range(6)]
    runs = await asyncio.gather(*(box.call(source, calls=[("f", [])]) for source in sources))
    assert [run.values[0].value for run in runs] == list(range(6))


def test_neither_the_internet_nor_this_machine_can_be_reached(box):
    code = """
import socket
def f(host, port):
    try:
        socket.create_connection((host, port), timeout=0.3)
    except OSError as error:
        return type(error).__name__
    return "reached"
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = server.getsockname()
        run = box.run(code, calls=[("f", list(here)), ("f", ["1.1.1.1", 53])])
        socket.create_connection(here, timeout=1).close()  # the server is there
    assert [value.value for value in run.values] == ["ConnectionRefusedError", "OSError"]


def test_a_fork_bomb_is_held_small_and_gone_at_once(short):
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.03):
            seen.append(shut_in())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run = short.run(
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    )
    done.set()
    watcher.join()
    assert run.end == "late"
    assert max(seen) <= LIMITS.processes + 8  # with the workers and their first processes
    assert gone()


def gone() -> bool:
    """Whether nothing is left but warm workers: two processes each, in two sandboxes."""
    deadline = time.monotonic() + 2
    while shut_in() > 4 * (os.cpu_count() or 1):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_nothing_can_be_written_outside_of_tmp(box):
    code = """
import os
def f(places):
    wrote = []
    for place in places:
        try:
            open(os.path.join(place, "x"), "w").close()
            wrote.append(place)
        except OSError:
            pass
    return wrote
"""
    places = ["/", "/usr", "/etc", "/dev", "/dev/shm", "/proc", "/proc/sys/kernel", "/bin", "/root"]
    places += [sys.base_prefix, str(Path.home()), str(Path(__file__).parent)]
    assert box.run(code, calls=[("f", [[*places, "/tmp"]])]).values[0].value == ["/tmp"]
    listing = box.run("import os\nf = os.listdir", calls=[("f", ["/tmp"])])
    assert listing.values[0].value == []  # nor does the next attempt find what this one left


def test_our_files_and_environment_are_not_there(box, monkeypatch):
    monkeypatch.setenv("SECRET", "hush")
    code = """
import os, glob
def f(paths):
    told = []
    for path in paths + glob.glob("/proc/*/environ"):
        try:
            told.append(open(path, "rb").read().decode(errors="replace"))
        except OSError:
            pass
    return "".join(told), dict(os.environ)
"""
    paths = [
        "/etc/shadow",
        "/etc/passwd",
        str(Path.home() / ".bashrc"),
        __file__,
        "/proc/1/environ",
    ]
    with Sandbox(LIMITS) as fresh:
        told, environment = fresh.run(code, calls=[("f", [paths])]).values[0].value
    assert "hush" not in told and "root:" not in told and "def test_" not in told
    assert set(environment) <= {"PWD", "LC_CTYPE"}


def test_other_processes_can_be_neither_seen_nor_killed(box):
    other = subprocess.Popen(["sleep", "60"])
    code = f"""
import os, signal
def f():
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    try:
        os.kill({other.pid}, 9)
    except OSError:
        return len(seen)
"""
    assert box.run(code, calls=[("f", [])]).values[0].value <= 3
    assert box.run("import os, signal\nos.kill(-1, 9)").end in ("died", "late")
    assert box.run("import os, signal\nos.kill(os.getppid(), 9)").end in ("died", "late", "done")
    assert other.poll() is None
    other.kill()
    other.wait()
    assert box.run("f = abs", calls=[("f", [-1])]).values[0].value == 1


DAEMON = """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(600)
    os._exit(0)
"""


def test_a_daemon_ends_with_the_attempt_that_left_it(box):
    assert box.run(DAEMON).end == "done"
    assert gone()
    assert box.run("f = abs", calls=[("f", [-1])]).values[0].value == 1


@pytest.mark.parametrize(
    ("source", "ends"),
    [
        ("while True: pass", {"late"}),
        ("import time\ntime.sleep(600)", {"late"}),
        ("import signal\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\nwhile 1: pass", {"late"}),
        ("while True: print('x' * 999)", {"flood"}),
        ("import os\nwhile True: os.write(3, b'x' * 999)", {"flood"}),
        ("import os\nos._exit(0)", {"done"}),
        ("import ctypes\nctypes.string_at(0)", {"died"}),
        ("def f(): return f()\nf()", {"done", "died"}),
    ],
)
def test_whatever_never_ends_or_says_too_much_is_ended(short, source, ends):
    began = time.monotonic()
    run = short.run(source, calls=[("f", [])])
    assert run.end in ends and not any(value.value for value in run.values)
    assert len(run.text) <= LIMITS.output_bytes
    assert (
        time.monotonic() - began < 5
    )  # seconds; it may have half a one, on a machine that does other things


def test_memory_files_and_returned_values_are_bounded(box):
    code = """
def memory():
    return len("x" * (1 << 30))
def file():
    with open("/tmp/x", "wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
def files():
    for n in range(100):
        with open(f"/tmp/{n}", "wb") as file:
            file.write(bytes(60000))
def much():
    return "x" * (1 << 20)
"""
    run = box.run(code, calls=[("memory", []), ("file", []), ("files", []), ("much", [])])
    assert [value.error for value in run.values] == ["MemoryError", "OSError", "OSError"]
    assert "too large" in run.values[1].why and "space" in run.values[2].why
    assert run.end == "flood"


def test_an_object_that_equals_everything_is_no_value(box):
    code = "class All(int):\n    def __eq__(self, other): return True\ndef f(): return All()"
    assert box.run(code, calls=[("f", [])]).values[0].error == "TypeError"
    forged = "import os\nos.write(3, b'[[[[\\n')\ndef f(): return 1"
    assert not box.run(forged, calls=[("f", [])]).clean


def test_without_bubblewrap_nothing_runs_and_one_line_says_what_is_missing(monkeypatch):
    find.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(EtudeError, match=r"bwrap\) is not installed; apt install bubblewrap, or"):
        Sandbox()
    find.cache_clear()


def test_where_namespaces_are_off_it_refuses_to_start(tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho bwrap: No permissions to create a new namespace >&2\nexit 1\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(
        EtudeError, match="cannot shut a program in here: .*No permissions to create"
    ):
        Sandbox(program=str(fake))
