"""Two processes sample half of the problems each and train on the very rows of one process."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from etude.parallel.mesh import Ranks
from tests.rl.test_source import at, source


def rows(ranks):
    made = source(ranks=ranks, batch={"micro": 2})
    batches = made.next(at(0))
    calls = sum(len(prompts) for prompts, _ in made.sampler.calls)
    found = [
        ids[mask > 0].tolist() for b in batches for ids, mask in zip(b.ids, b.segments, strict=True)
    ]
    return {"rows": found, "batches": len(batches), "calls": calls, "seen": made.metrics()}


def work(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.put((rank, rows(Ranks(rank, 2))))
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_share_the_sampling_and_the_rows_of_one(tmp_path):
    context = multiprocessing.get_context("fork")  # a fresh start would import everything again
    results = context.Queue()
    jobs = [context.Process(target=work, args=(r, tmp_path / "store", results)) for r in range(2)]
    for job in jobs:
        job.start()
    found = dict(results.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join(timeout=60)
    alone = rows(Ranks())
    assert found[0]["calls"] == found[1]["calls"] == alone["calls"] / 2
    assert sorted(found[0]["rows"] + found[1]["rows"]) == sorted(alone["rows"])
    assert found[0]["batches"] == found[1]["batches"]
    assert found[0]["seen"]["reward"] == found[1]["seen"]["reward"] == alone["seen"]["reward"]
