"""Tools run apart from the trainer, and only their own rollout pays for what they do."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from etude.data.tools import TOOLS, Tool
from etude.rl.toolbox import Toolbox, ToolFailure


def odd(name, function):
    return {name: lambda pages: Tool(name, "odd", {"properties": {}}, function)}


def spin() -> str:
    while True:
        pass


def fail() -> str:
    raise ValueError("no")


def test_tools_answer_and_lookup_reads_the_pages_of_its_item():
    with Toolbox() as box:
        assert box.run("calculator", {"expression": "12*7"}) == "84"
        assert box.run("lookup", {"page": "3"}, {"3": "see page 5"}) == "see page 5"
        assert box.run("lookup", {"page": "3"}, {}).startswith("error:")


def test_wrong_arguments_are_told_to_the_model_and_are_no_failure():
    with Toolbox() as box:
        assert box.run("calculator", {}) == "error: calculator needs expression"


@pytest.mark.parametrize(
    ("function", "words"),
    [(spin, "no answer in 0.2 s"), (fail, "ValueError: no"), (lambda: os._exit(1), "ended")],
)
def test_a_tool_that_hangs_raises_or_dies_is_a_failure_and_the_next_call_works(function, words):
    with Toolbox(TOOLS | odd("odd", function), seconds=0.2) as box:
        with pytest.raises(ToolFailure, match=words):
            box.run("odd", {})
        assert box.run("calculator", {"expression": "1+1"}) == "2"
        assert (box.calls, box.failures) == (2, 1)


def test_late_tools_wait_side_by_side_and_leave_no_process_behind():
    async def four() -> list[object]:
        calls = [box.call("odd", {}) for _ in range(4)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with Toolbox(TOOLS | odd("odd", spin), seconds=0.4) as box:
        began = time.monotonic()
        assert all(isinstance(result, ToolFailure) for result in asyncio.run(four()))
        assert time.monotonic() - began < 1.4  # one after another would take 1.6 s
        assert box._idle == []


def test_an_unknown_tool_is_a_failure():
    with Toolbox() as box, pytest.raises(ToolFailure, match="no tool is named wings"):
        box.run("wings", {})


def test_a_worker_that_was_killed_between_calls_is_replaced_unseen():
    with Toolbox() as box:
        box.run("calculator", {"expression": "1"})
        os.kill(box._idle[0].process, signal.SIGKILL)
        time.sleep(0.05)
        assert box.run("calculator", {"expression": "1+1"}) == "2"
        assert box.failures == 0


def test_a_request_to_stop_the_trainer_does_not_end_its_tools():
    with Toolbox() as box:
        box.run("calculator", {"expression": "1"})
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(box._idle[0].process, number)
        time.sleep(0.05)
        assert box._idle[0].alive()


def test_workers_end_with_the_process_that_made_them_however_many_there_are():
    """Started side by side they inherit each other's pipes, and must not keep each other alive."""
    script = """
import asyncio, os, signal
from etude.rl.toolbox import Toolbox
box = Toolbox()
async def many():
    await asyncio.gather(*(box.call("calculator", {"expression": "1"}) for _ in range(40)))
asyncio.run(many())
print(*(worker.process for worker in box._idle), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    made = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    workers = made.stdout.readline().split()
    made.wait()
    assert len(workers) > 1
    deadline = time.monotonic() + 5
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
