"""Where processes run: alone, as one of those that `torchrun` started, or where Ray places them."""

import asyncio
import inspect
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from etude.errors import EtudeError
from etude.parallel.environ import process
from etude.parallel.mesh import Ranks

LOOK_SECONDS = 1.0  # between two looks at whether the parent is there


@contextmanager
def ranks(device: str = "auto", *, environ: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """Yield this process among those that train together, and leave the group at the end.

    One process on a CPU needs no group and no shards. Several, or a GPU (whose bfloat16 copies of
    float32 weights FSDP2 keeps), get a mesh: gloo on CPUs, nccl on GPUs.

    Args:
        device: `auto` = a GPU when there is one; `cpu`, `cuda` or `cuda:1`.
        environ: what torchrun set; None = the process environment.

    Raises:
        EtudeError: the device is not there, or what torchrun should have set is missing or wrong.
    """
    rank, world, local = process(environ)
    where = _device(device, local)
    if world == 1 and where.type == "cpu":
        yield Ranks(device=where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    store = None if world > 1 else dist.HashStore()
    backend = "nccl" if where.type == "cuda" else "gloo"
    with _parent(watched=world > 1):
        dist.init_process_group(backend, rank=rank, world_size=world, store=store)
        try:
            yield Ranks(rank, world, where, init_device_mesh(where.type, (world,)))
        finally:
            dist.destroy_process_group()


class RayWorkers:
    """Objects in processes that Ray places, on this machine or on a cluster; called by name.

    Args:
        make: makes the object of a worker, in the worker.
        count: of workers.
        gone: makes the error that says that a worker has died.
        cpus, gpus: of each.
        seconds: a call that takes longer is taken for a death.
        address: of a running cluster, or `auto`; "" starts Ray here, without its dashboard.
        memory_mb: object store of a Ray that is started here.
        room: CPUs that it counts, also for workers still to come; 0 = for these.

    Raises:
        EtudeError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        gone: Callable[[str], Exception],
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        seconds: float = 600.0,
        address: str = "",
        memory_mb: int = 256,
        room: float = 0.0,
    ):
        self.count, self._make, self._gone, self._seconds = count, make, gone, seconds
        self._ray = _ray(address, cpus=math.ceil(room or cpus * count), memory_mb=memory_mb)
        self._needs = {"num_cpus": cpus, "num_gpus": gpus}
        self.handles = [self._place() for _ in range(count)]
        self._shared: list[Any] = []

    async def call(self, place: int, method: str, *args: Any) -> Any:
        """Call a method of a worker's object and wait for the result."""
        ray = self._ray
        told = f"worker {place} gave no answer in {self._seconds:g} s"
        try:
            answer = self.handles[place].call.remote(method, *args)
            return await asyncio.wait_for(answer, self._seconds)
        except TimeoutError as late:
            raise self._gone(told) from late
        except ray.exceptions.RayTaskError as error:  # what the method raised
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None
        except ray.exceptions.RayError as error:
            text = str(error).split("\n")[0]
            raise self._gone(f"worker {place}: {type(error).__name__}: {text}") from None

    async def replace(self, place: int) -> None:
        """Place a new worker; what the old one still does is of no account."""
        self._ray.kill(self.handles[place])
        self.handles[place] = self._place()

    def share(self, value: Any) -> Any:
        """Put a value into the object store; a call that gets the handle gets the value."""
        self._shared = [*self._shared[-1:], self._ray.put(value)]  # one before: calls under way
        return self._shared[-1]

    def close(self) -> None:
        """End the workers; a Ray that was started here ends with this process."""
        for handle in self.handles:
            self._ray.kill(handle)
        self._shared.clear()

    def _place(self) -> Any:
        return self._ray.remote(_Host).options(**self._needs).remote(self._make)


class _Host:
    """A worker's process: makes its object and calls its methods."""

    def __init__(self, make: Callable[[], Any]):
        self.object = make()

    async def call(self, method: str, *args: Any) -> Any:
        found = getattr(self.object, method)(*args)
        return await found if inspect.isawaitable(found) else found


def _ray(address: str, *, cpus: int, memory_mb: int) -> ModuleType:
    try:
        import ray
    except ImportError as error:
        do = "pip install 'etude[cluster]'"
        raise EtudeError("engine.ray", "needs Ray, which is not here", do=do) from error
    if ray.is_initialized():
        return ray
    quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(num_cpus=cpus, object_store_memory=memory_mb << 20, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"engine.ray.address {address}" if address else "engine.ray"
        do = "start it with `ray start --head`, or leave the address out"
        raise EtudeError(where, f"cannot be reached ({error})", do=do, code=1) from error
    return ray


def has_gpu() -> bool:
    """Whether `auto` stands for a GPU on this machine."""
    return torch.cuda.is_available()


@contextmanager
def _parent(*, watched: bool) -> Iterator[None]:
    """End this process, as a kill would, once the one that started it is no more.

    torchrun ends its ranks when it ends, unless it is killed: then they would go on, hold the run's
    folder and the GPUs, or wait for each other for ever. What they have saved is whole at any time.
    """
    parent, left = os.getppid(), threading.Event()

    def look() -> None:
        while not left.wait(LOOK_SECONDS):
            if os.getppid() != parent:  # orphans are given to another process
                os.kill(os.getpid(), signal.SIGKILL)

    if watched:
        threading.Thread(target=look, name="parent", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if has_gpu() else "cpu"
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise EtudeError("device", repr(name), "auto, cpu, cuda or cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise EtudeError("device", repr(name), "auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and not has_gpu():
        raise EtudeError("device", f"{name} asked for, but torch sees no GPU", do="use device=cpu")
    return torch.device("cuda", local) if place.type == "cuda" and place.index is None else place
