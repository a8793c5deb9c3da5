"""What a worker of a fleet holds: the engine with a copy of the policy, or environments at play.

Plain objects with plain methods: whoever places them calls these by name.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from etude import arch
from etude.nn import build
from etude.rl.environment import Environment, Outcome, Start
from etude.rl.local import LocalSampler
from etude.rl.problems import Problem
from etude.rl.sampler import Completion, Prompt, Sampling
from etude.rl.tasks import group
from etude.rl.toolbox import Toolbox
from etude.text.turns import Message

REMEMBERED = 4096  # attempts whose last turn is known, for one that asks again


class RolloutWorker:
    """Samples with a copy of the policy.

    Args:
        plan: what the policy is.
        threads: that torch uses here.
        device: where the copy lives; `auto` = a GPU when this process has one.
    """

    def __init__(self, plan: arch.Decoder, *, threads: int = 1, device: str = "auto"):
        torch.set_num_threads(threads)
        here = "cuda" if torch.cuda.is_available() else "cpu"
        model = build.decoder(plan).to(here if device == "auto" else device)
        self.sampler, self.version = LocalSampler(model), -1

    def load(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Copy new weights."""
        self.sampler.model.load_state_dict(weights, strict=True)
        self.sampler.version = self.version = version

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer prompts under the weights of the last `load`."""
        assert self.version >= 0, "no weights were loaded"
        return await self.sampler.sample(prompts, params)


class EnvironmentWorker:
    """Plays attempts of environments, with the tools in this process.

    A turn that is asked twice is played once: its number is known.

    Args:
        seconds: a tool that answers later has failed.
    """

    def __init__(self, *, seconds: float = 5.0):
        self.toolbox = Toolbox(seconds=seconds)
        self._live: dict[str, Environment] = {}
        self._last: dict[str, tuple[int, Outcome]] = {}

    async def start(self, id: str, problem: Problem, format_penalty: bool) -> Start:
        """Open an attempt, anew where it was open."""
        [environment] = group(problem, 1, self.toolbox, format_penalty=format_penalty)
        self._live[id], start = environment, await environment.start()
        self._last.pop(id, None)
        return start

    async def step(self, id: str, turn: int, reply: Message) -> Outcome | None:
        """Take a turn; None where the attempt is not open here, as after a worker's death."""
        seen = self._last.get(id)
        if seen and seen[0] == turn:
            return seen[1]
        if id not in self._live:
            return None
        outcome = await self._live[id].step(reply)
        self._last[id] = turn, outcome
        if outcome.done:
            del self._live[id]
        for old in list(self._last)[:-REMEMBERED]:
            if old not in self._live:
                del self._last[old]
        return outcome
