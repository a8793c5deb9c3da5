"""How the engine shares what it has."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from etude.errors import EtudeError


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds and switches of an engine.

    Args:
        pages: pages in all; None holds `max_running` requests of the model's length, but no more
            than 65,536 tokens.
        page_size: tokens of a page.
        max_running: requests that are worked on at once.
        token_budget: tokens of a step.
        chunk: most tokens of one prompt in a step; None is the budget.
        reuse: keep what was computed for later prompts that begin alike.
        snapshots: states that are kept for that, where layers have states.
        snapshot_every: pages of a long prompt between two of them.
        speculate: guesses per step by the model's MTP block; None is 2 where there is one.
        deterministic: every request runs in passes of its own, of sizes that depend on its prompt
            alone, so that not even rounding depends on its neighbours; nothing is guessed.
        weights: "int8" rounds a copy of them, see `nn.int8`; "stored" takes them as they are.
        kernels: build the kernels of `ops.native`, if they have not been; "int8" does so anyway.
        text: make text of ids, where there is a tokenizer.
        debug: check all counts after every step.
        starvation_s: `batch` requests are let in at least this often; a whole prompt that has
            waited so long takes the place of an open one, even of one that still grows.
        max_skips: after so many later requests let in before it, a waiting one is first.
        open_idle_s: an open prompt that has not grown for so long lets its pages go.
        clock: seconds, for deadlines and the two above; the order of work depends on nothing else.
    """

    pages: int | None = None
    page_size: int = 64
    max_running: int = 16
    token_budget: int = 512
    chunk: int | None = None
    reuse: bool = True
    snapshots: int = 64
    snapshot_every: int = 16
    speculate: int | None = None
    deterministic: bool = False
    weights: str = "stored"
    kernels: bool = False
    text: bool = True
    debug: bool = False
    starvation_s: float = 10.0
    max_skips: int = 50
    open_idle_s: float = 60.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.weights not in ("stored", "int8"):
            raise EtudeError("engine: weights", repr(self.weights), "stored or int8")
        least = {"page_size": 1, "max_running": 1, "snapshots": 0, "snapshot_every": 1}
        least |= {"token_budget": self.max_running, "max_skips": 0}
        for name in ("pages", "chunk", "speculate"):
            if getattr(self, name) is not None:
                least[name] = 0 if name == "speculate" else 1
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                raise EtudeError(f"engine: {name}", str(value), f"at least {low}")

    @property
    def span(self) -> int:
        """Most tokens of one prompt in a step.

        Fixed ones end where pages end, so that what is shared was computed in whole ones.
        """
        wanted, size = self.chunk or self.token_budget, self.page_size
        return -(-wanted // size) * size if self.deterministic else wanted
