"""How many CPU threads train: timed once, kept for good.

Sums over threads round differently, so a resumed run must use as many as the run it goes on with.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from etude.errors import EtudeError
from etude.files import read_json, write_json

REPEATS = 3


def settle(folder: Path, wanted: int, probe: Callable[[], object]) -> int:
    """Set the number of threads of this run, and remember it in its folder.

    Args:
        folder: of the run; what `threads.json` in it says stands, unless `wanted` says otherwise.
        wanted: this many; 0 = the faster of one and all cores.
        probe: one forward and backward, timed when there is a choice to make.

    Returns:
        The number of threads now set.

    Raises:
        EtudeError: `threads.json` is damaged.
    """
    path = folder / "threads.json"
    kept = _kept(path) if path.exists() else 0
    threads = wanted or kept or fastest(probe)
    if threads != kept:
        write_json(path, {"threads": threads})
    torch.set_num_threads(threads)
    return threads


def _kept(path: Path) -> int:
    found = read_json(path)
    kept = found.get("threads") if isinstance(found, dict) else None
    if type(kept) is not int or kept < 1:
        do = "delete it, and the threads are timed again"
        raise EtudeError(str(path), "is damaged", do=do)
    return kept


def fastest(probe: Callable[[], object]) -> int:
    """Time `probe` with one thread and with all cores, which must be a tenth faster to be taken.

    On a machine that has other work, threads wait for each other and many can be far slower than
    one.
    """
    before, cores = torch.get_num_threads(), cores_here()
    if cores == 1:
        return 1
    try:
        one, every = (_time(probe, threads) for threads in (1, cores))
    finally:
        torch.set_num_threads(before)
    return cores if every < 0.9 * one else 1


def _time(probe: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    probe()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        probe()
        times.append(time.perf_counter() - started)
    return min(times)


def cores_here() -> int:
    """Cores this process may use; OMP_NUM_THREADS bounds them as it bounds torch itself."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        allowed = len(os.sched_getaffinity(0))
    bound = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(bound)) if bound.isdigit() and int(bound) else allowed
