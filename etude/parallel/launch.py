"""Start as one process, or as one of those that `torchrun` started."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
