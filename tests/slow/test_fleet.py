"""A real Ray of two workers: one is killed in the middle, and the end is the same."""

import asyncio
import json
import os
import signal
from functools import partial

import pytest

from etude.parallel.launch import RayWorkers
from etude.rl.fleet import Died, FleetSampler
from etude.rl.fleet_workers import RolloutWorker
from etude.rl.local import LocalSampler
from etude.rl.sampler import Prompt, Sampling
from etude.run import train
from tests.rl.fakes import model
from tests.test_run import WHOLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PROMPTS = [Prompt([5 + n, 6, 7], n) for n in range(24)]


class Doomed(RolloutWorker):
    """Kills its process at its second piece of work, if nobody has done so before."""

    def __init__(self, plan, mark):
        super().__init__(plan)
        self.mark, self.pieces = mark, 0

    async def sample(self, prompts, params):
        self.pieces += 1
        if self.pieces == 2:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return await super().sample(prompts, params)


def test_a_killed_worker_is_replaced_and_no_sample_is_lost_or_counted_twice(tmp_path):
    import ray

    policy, mark = model(3), str(tmp_path / "killed")
    placed = RayWorkers(partial(Doomed, policy.arch, mark), 2, Died, cpus=0.5, memory_mb=100)
    try:
        fleet = FleetSampler(placed, policy)
        asyncio.run(fleet.update(None, 4))
        params = Sampling(6, 1.0)
        found = asyncio.run(fleet.sample(PROMPTS, params))
        wanted = asyncio.run(LocalSampler(policy).sample(PROMPTS, params))
        assert os.path.exists(mark) and fleet.crew.count.replaced == 1
        assert fleet.crew.count.done == 8 and fleet.crew.count.repeated == 0
        assert [one.tokens for one in found] == [one.tokens for one in wanted]
        assert {one.version for one in found} == {4}
        asyncio.run(fleet.update(model(5).state_dict(), 5))  # broadcast to the new one too
        again = asyncio.run(fleet.sample(PROMPTS, params))
        assert {one.version for one in again} == {5}
        other = asyncio.run(LocalSampler(model(5)).sample(PROMPTS, params))
        assert [one.tokens for one in again] == [one.tokens for one in other]
    finally:
        placed.close()
        ray.shutdown()


def test_a_recipe_that_names_ray_samples_what_the_same_recipe_samples_here(tmp_path):
    """Weights, rollouts and environments cross processes; the rows that train are the same."""
    path = tmp_path / "whole.yaml"
    path.write_text(WHOLE)
    learns = ["rl.environments=[{name: instruct}]", "rl.steps=2"]
    learns += ["rl.rollout={prompts: 4, per_prompt: 4, max_tokens: 6, record: {groups: all}}"]
    fleet = "rl.engine={ray: {workers: 2, environments: 1, cpus: 0.5, memory_mb: 100}}"
    runs = {}
    for name, more in (("here", []), ("far", [fleet])):
        run = train(str(path), [*learns, *more], out=tmp_path / name, until="rl")
        lines = (run / "rollouts/rl.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        runs[name] = [(row["ids"], row["reward"], row["version"]) for row in rows if "ids" in row]
    assert runs["far"] == runs["here"] and len(runs["here"]) == 32
    assert {version for *_, version in runs["far"]} == {0, 1}
