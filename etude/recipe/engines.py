"""Which machine samples the rollouts: `engine: local`, `{url: ...}` or `{ray: {...}}`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from etude.recipe.numbers import CONFIG, Count, Positive, Rate


@dataclass(frozen=True, slots=True, config=CONFIG)
class Remote:
    """A vLLM or SGLang server that holds a copy of the policy.

    Args:
        url: where it listens, for example `http://host:8000`.
        server: which of the two it is; `auto` asks it.
        model: its own name for the model; "" takes the first it lists.
        sync: how new weights reach it. `checkpoint` writes a folder in the published layout that
            both sides can read, and has it loaded; `transfer` hands vLLM the memory of the same GPU
            by its weight-transfer endpoints; `tensors` sends SGLang the tensors in the request.
        folder: where checkpoints for it are written; "" is a folder of the run.
        shards: SGLang's tensor-parallel size: `tensors` sends every shard the same list.
        concurrent: requests under way at once.
        seconds: a request, a load of weights included, that takes longer is tried again.
        retries: further tries after a broken connection, a time-out or an answer of 5xx.
        gap: mean absolute difference, in nats, between its log-probabilities and the trainer's from
            which on its weights count as stale, where it does not say which version it serves (our
            choice: bfloat16 against float32 moves about 0.01, a step of training more).
    """

    url: Annotated[str, Field(pattern=r"^https?://")]
    server: Literal["auto", "vllm", "sglang"] = "auto"
    model: str = ""
    sync: Literal["checkpoint", "transfer", "tensors"] = "checkpoint"
    folder: str = ""
    shards: Positive = 1
    concurrent: Positive = 64
    seconds: Rate = 600.0
    retries: Count = 5
    gap: Rate = 0.1

    def __post_init__(self) -> None:
        """Each server has its own way to take tensors."""
        own = {"transfer": "vllm", "tensors": "sglang"}.get(self.sync, "auto")
        if own != "auto" and self.server not in ("auto", own):
            raise ValueError(f"sync {self.sync} is {own}'s, and server is {self.server}")


@dataclass(frozen=True, slots=True, config=CONFIG)
class Ray:
    """Processes that Ray places, on this machine or on a cluster.

    Args:
        workers: rollout workers, each with this engine and a copy of the policy.
        environments: workers that play the environments and run their tools; 0 plays them here.
        address: of a running cluster, or "auto"; "" starts Ray on this machine.
        cpus: that Ray keeps for each worker.
        gpus: likewise, for each rollout worker.
        threads: that torch uses in each rollout worker.
        seconds: a worker that works longer on one piece of work counts as dead.
        restarts: workers replaced in a row, without a piece of work done, before the run stops.
        memory_mb: object store of a Ray started here.
    """

    workers: Positive = 2
    environments: Count = 0
    address: str = ""
    cpus: Rate = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    threads: Positive = 1
    seconds: Rate = 600.0
    restarts: Count = 3
    memory_mb: Annotated[int, Field(ge=80)] = 256


@dataclass(frozen=True, slots=True, config=CONFIG)
class Fleet:
    """Rollouts by a fleet of processes.

    Args:
        ray: how many, and where.
    """

    ray: Ray


def _which(value: Any) -> str | None:
    if value == "local":
        return "local"
    if isinstance(value, dict):
        return "Remote" if "url" in value else "Fleet" if "ray" in value else None
    return type(value).__name__ if isinstance(value, Remote | Fleet) else None


Engine = Annotated[
    Annotated[Literal["local"], Tag("local")]
    | Annotated[Remote, Tag("Remote")]
    | Annotated[Fleet, Tag("Fleet")],
    Discriminator(
        _which,
        custom_error_type="engine",
        custom_error_message="expected local, {url: ...} or {ray: {...}}",
    ),
]
