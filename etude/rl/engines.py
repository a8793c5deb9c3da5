"""What an rl stage's `engine:` stands for: a sampler, and where the environments are played."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.parallel.launch import RayWorkers
from etude.parallel.mesh import Ranks
from etude.recipe.engines import Fleet, Remote
from etude.recipe.stages import Rl
from etude.rl.environment import Environment
from etude.rl.fleet import Died, FleetSampler
from etude.rl.fleet_environments import EnvironmentFleet
from etude.rl.fleet_workers import EnvironmentWorker, RolloutWorker
from etude.rl.player import ALONE
from etude.rl.remote import RemoteSampler
from etude.rl.sampler import Sampler
from etude.rl.tasks import group
from etude.text.tokenizer import Tokenizer

Group = Callable[..., Sequence[Environment]]


@contextmanager
def opened(
    stage: Rl,
    model: Decoder,
    *,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    say: Callable[[str], None] = lambda text: None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Sampler | None, Group]]:
    """Yield the stage's sampler and what makes its environments; end both with the block.

    Args:
        stage: whose `engine` says which.
        model: the policy.
        folder: for checkpoints that a server reads, where the recipe names none.
        tokenizer: written beside them.
        say: told about stale weights.
        ranks: the processes that train together.

    Yields:
        (None, ...) for the engine in this process, which `RolloutSource` makes itself.

    Raises:
        EtudeError: nobody answers at the URL or it gives no token ids, Ray is missing, or several
            ranks would each start a fleet.
    """
    match stage.engine:
        case Remote() as spec:
            scores = stage.rollout.mode == "sync" and ranks.world == 1
            how = {"folder": folder, "tokenizer": tokenizer, "say": say, "ranks": ranks}
            sampler = RemoteSampler(spec, model, **how, scores=scores)
            asyncio.run(sampler.probe())
            yield sampler, group
        case Fleet():
            if ranks.world > 1:
                found = f"a fleet for each of {ranks.world} ranks"
                raise EtudeError(f"{stage.name}.engine.ray", found, "one process that trains")
            with _fleet(stage, stage.engine, model) as made:
                yield made
        case _:
            yield None, group


@contextmanager
def _fleet(stage: Rl, spec: Fleet, model: Decoder) -> Iterator[tuple[Sampler, Group]]:
    ray = spec.ray
    how: dict[str, Any] = {"seconds": ray.seconds, "address": ray.address}
    how |= {
        "memory_mb": ray.memory_mb,
        "cpus": ray.cpus,
        "room": ray.cpus * (ray.workers + ray.environments),
    }
    make = partial(RolloutWorker, model.arch, threads=ray.threads)
    placed = RayWorkers(make, ray.workers, Died, gpus=ray.gpus, **how)
    sampler = FleetSampler(placed, model, restarts=ray.restarts)
    try:
        if not ray.environments:
            yield sampler, group
            return
        play = partial(EnvironmentWorker, seconds=stage.rollout.tool_seconds)
        far = EnvironmentFleet(
            RayWorkers(play, ray.environments, Died, **how), restarts=ray.restarts
        )
        try:
            yield sampler, far.group
        finally:
            far.close()
    finally:
        sampler.close()
