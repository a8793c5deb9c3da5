"""Peak memory of one side of a work, in a process of its own: what it takes beyond its weights."""

import subprocess
import sys
from pathlib import Path

from etude.errors import EtudeError

_CHILD = """
import resource, sys, threading, time
import torch
from pathlib import Path
from etude.bench import pair, works
from etude.models.checkpoint import load

side, work, folder, threads = sys.argv[1:5]
torch.set_num_threads(int(threads))
# both sides are imported in either process, so that the difference is the work's own
ours, theirs = load(folder), pair.peer(Path(folder))
one = works.WORKS["decode"](ours, theirs)
getattr(one, side)()

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

found = works.WORKS[work](ours, theirs)
before = highest = held()
done = False

def watch():
    global highest
    while not done:
        highest = max(highest, held())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
getattr(found, side)()
done = True
thread.join()
print(highest - before)
"""


def peak(side: str, work: str, folder: Path, threads: int) -> float:
    """Return the bytes that the work of one side needs at its peak, weights not counted.

    Args:
        side: "ours" or "theirs".
        work: name of a work.
        folder: checkpoint of the model.
        threads: CPU threads.

    Raises:
        EtudeError: the process failed, or this is no Linux.
    """
    if not Path("/proc/self/statm").exists():
        raise EtudeError("bench memory", "this system has no /proc", "Linux")
    command = [sys.executable, "-c", _CHILD, side, work, str(folder), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise EtudeError(f"bench memory {work}", f"the process of {side!r} ended with {last}")
    return float(done.stdout.split()[-1])
