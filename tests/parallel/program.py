"""What two ranks run under torchrun: whole stages, one that is stopped, one that is resumed."""

import sys
from pathlib import Path

from etude.parallel import launch
from etude.train.log import Log
from etude.train.objective import NextToken
from etude.train.stage import Stopped, run_stage
from tests.train import tiny

TOTAL, SAVE_EVERY = 400, 3


def run(folder, kind, ranks=None, **more):
    """One stage of nine steps, on one rank or several."""
    rank, world = (ranks.rank, ranks.world) if ranks else (0, 1)
    source = tiny.Fixed(4, 1, rank=rank, world=world)
    log = Log(folder, console="quiet", main=rank == 0)
    options = {"log": log, "total": TOTAL, "save_every": SAVE_EVERY, "ranks": ranks} | more
    model = tiny.model(**tiny.OF.get(kind, {}))
    run_stage(tiny.spec(kind), model, source, NextToken(), folder / "pretrain", **options)


def stopped(folder, kind, ranks=None, *, after, by=0):
    """The same, stopped after some steps because rank `by` was asked to."""
    calls = []

    def interrupt():
        calls.append(1)
        return (ranks.rank if ranks else 0) == by and len(calls) == after

    try:
        run(folder, kind, ranks, interrupt=interrupt)
    except Stopped:
        return
    raise AssertionError("it did not stop")


if __name__ == "__main__":
    base = Path(sys.argv[1])
    with launch.ranks("cpu") as two:
        for kind in ("muon", "muonclip", "adamw", "even"):
            run(base / kind, kind, two)
        stopped(base / "from-two", "muon", two, after=4, by=1)
        run(base / "from-one", "muon", two)  # goes on from what one rank left
