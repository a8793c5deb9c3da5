"""The processes that train together, and the few sums they take."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from etude.typing import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together; the default is one alone, without a group.

    Attributes:
        rank, world: which one this is, and how many there are.
        device: where its tensors live.
        mesh: over all ranks when weights are sharded; None = plain tensors.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")
    mesh: DeviceMesh | None = None

    @property
    def main(self) -> bool:
        """Whether this rank logs and writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; the same answer on all."""
        if self.world == 1:
            return flag
        return bool(self.max(torch.tensor(int(flag), device=self.device)).item())

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()
