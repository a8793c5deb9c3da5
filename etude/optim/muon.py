"""Muon: momentum whose matrices are made nearly orthogonal before they are added."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from etude.typing import Float, Tensor

# A quintic with fixed points near 1: five steps bring singular values from 0.01 up to 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BATCH_NUMEL = 2**26  # matrices of one shape are iterated together up to this size


def orthogonalise(
    update: Float[Tensor, "M rows cols"], *, steps: int = 5, dtype: torch.dtype | None = None
) -> Float[Tensor, "M rows cols"]:
    """Bring every singular value of each matrix near 1, keeping its singular vectors.

    Args:
        update: M matrices of one shape.
        steps: Newton-Schulz iterations.
        dtype: of the iteration; None = float32 on a CPU, bfloat16 on a GPU.

    Returns:
        X after X <- a X + (b A + c A^2) X with A = X X^T, from X = update / (Frobenius norm +
        1e-7), in float32.

    Source: Muon (Jordan et al., 2024); Moonlight, arXiv:2502.16982, section 2.1, equations 1 and 2.
    """
    a, b, c = COEFFICIENTS
    tall = update.shape[1] > update.shape[2]
    x = update.mT if tall else update  # the products then have the smaller size
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    x = x.to(dtype or (torch.float32 if x.device.type == "cpu" else torch.bfloat16))
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return (x.mT if tall else x).float()


class Cut(NamedTuple):
    """How the rows of one parameter fall apart into matrices that are orthogonalised alone.

    Attributes:
        groups: equal runs of rows, for example heads; 1 where there is one run.
        sizes: rows of each matrix within a run, in order.
    """

    groups: int
    sizes: tuple[int, ...]

    def apart(self, weight: Float[Tensor, "rows cols"]) -> list[Tensor]:
        """Return the matrices, each with its rows of all runs."""
        runs = weight.unflatten(0, (self.groups, sum(self.sizes)))
        return [part.flatten(0, 1) for part in runs.split(self.sizes, dim=1)]

    def joined(self, parts: list[Tensor]) -> Float[Tensor, "rows cols"]:
        """Put the matrices back in the order of the rows."""
        runs = [part.unflatten(0, (self.groups, -1)) for part in parts]
        return torch.cat(runs, dim=1).flatten(0, 1)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix, scaled to a fixed root mean square; decoupled decay.

    A 2-D parameter is one matrix, or several that one product computes (`cuts`); a 3-D parameter is
    a stack of matrices (experts), each alone. All matrices of one shape, or of its transpose, are
    iterated in one batched product. Shards (`DTensor`) are gathered to whole matrices, and each
    rank takes its own part of the result back; a stack that is sharded between its matrices needs
    no gathering.

    Args:
        params: parameters of two or three dimensions.
        lr: learning rate; with the RMS matching it is of AdamW's size.
        momentum: 0.95.
        nesterov: look one step ahead.
        steps: Newton-Schulz iterations.
        rms: root mean square of the update of a matrix of full rank (0.2 is typical of AdamW).
        weight_decay: decay per unit of learning rate.
        cuts: of the parameters that hold several matrices one below the other.

    Source: GLM-4.5, arXiv:2508.06471, section 2.4 (momentum, steps, RMS); Moonlight,
    arXiv:2502.16982, equation 4.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.5e-4,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = 5,
        rms: float = 0.2,
        weight_decay: float = 0.1,
        cuts: Mapping[Tensor, Cut] | None = None,
    ):
        self.cuts = dict(cuts or {})
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "steps": steps}
        super().__init__(params, settings | {"rms": rms, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim not in (2, 3):
                    raise ValueError(
                        f"Muon: a matrix or a stack of matrices, not {p.ndim} dimensions"
                    )
                zero = torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
                self.state[p] = {"momentum": zero}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with the gradients in `.grad`; `closure` is not used."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(params, group)

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        mu, lr = group["momentum"], group["lr"]
        grads = [p.grad.float() for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_mul_(momenta, mu)
        torch._foreach_add_(momenta, grads)
        updates = momenta
        if group["nesterov"]:
            updates = list(torch._foreach_add(grads, momenta, alpha=mu))
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        self._joint(params, updates, group)
        whole = [(p, u) for p, u in zip(params, updates, strict=True) if p not in self.cuts]
        shapes = [_whole_shape(update) for _, update in whole]
        for members in _batches(shapes):
            moves = _orthogonal([_whole(whole[i][1]) for i in members], group)
            for i, move in zip(members, moves, strict=True):
                _move(whole[i][0], move)

    def _joint(self, params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        """Move the parameters that hold several matrices, each matrix by its own update."""
        for p, update in zip(params, updates, strict=True):
            if p in self.cuts:
                cut = self.cuts[p]
                whole = update.full_tensor() if isinstance(update, DTensor) else update
                moves = [_orthogonal([part[None]], group)[0][0] for part in cut.apart(whole)]
                _move(p, cut.joined(moves)[None])


def _orthogonal(updates: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Orthogonalise stacks of matrices of one shape, or its transpose; scale each for its step."""
    wide = [u if u.shape[1] <= u.shape[2] else u.mT for u in updates]
    parts = orthogonalise(torch.cat(wide), steps=group["steps"]).split([len(u) for u in wide])
    # an orthogonal matrix has RMS size^-0.5
    scale = -group["lr"] * group["rms"] * max(updates[0].shape[1:]) ** 0.5
    pairs = zip(updates, parts, strict=True)
    return [(part if u.shape == part.shape else part.mT) * scale for u, part in pairs]


def _move(param: Tensor, move: Float[Tensor, "M rows cols"]) -> None:
    _own(param).add_(_shard(move, param))


def _whole_shape(update: Tensor) -> tuple[int, int, int]:
    """Matrices here, shorter side, longer side."""
    rows, cols = update.shape[-2:]
    count = len(update) if update.ndim == 3 else 1
    return count, min(rows, cols), max(rows, cols)


def _batches(shapes: list[tuple[int, int, int]]) -> Iterator[list[int]]:
    """Yield indices of parameters whose matrices share a shape, below the memory bound."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (_, short, long) in enumerate(shapes):
        groups.setdefault((short, long), []).append(i)
    for (short, long), members in groups.items():
        batch: list[int] = []
        held = 0
        for i in members:
            size = shapes[i][0] * short * long
            if batch and held + size > BATCH_NUMEL:
                yield batch
                batch, held = [], 0
            batch.append(i)
            held += size
        yield batch


def _between_matrices(update: Tensor) -> bool:
    """Whether this shard holds whole matrices: a stack cut along its first dimension, or no cut."""
    if not isinstance(update, DTensor):
        return True
    return update.ndim == 3 and all(p.is_replicate() or p.is_shard(0) for p in update.placements)


def _whole(update: Tensor) -> Float[Tensor, "M rows cols"]:
    """Matrices as a stack: this rank's own where those are whole, else all of them, gathered."""
    if isinstance(update, DTensor):
        update = update.to_local() if _between_matrices(update) else update.full_tensor()
    return update if update.ndim == 3 else update[None]


def _own(param: Tensor) -> Tensor:
    return param.to_local() if isinstance(param, DTensor) else param


def _shard(result: Tensor, param: Tensor) -> Tensor:
    """The part of `result` that this rank stores, shaped as its weights."""
    if isinstance(param, DTensor) and not _between_matrices(param):
        whole = result.reshape(param.shape)
        mesh, placements = param.device_mesh, param.placements
        result = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
    return result.reshape(_own(param).shape).to(param.dtype)
