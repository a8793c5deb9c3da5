"""AdamW with decoupled decay, vectorised over tensors."""

from collections.abc import Iterable
from typing import Any

import torch

from etude.typing import Tensor


class AdamW(torch.optim.Optimizer):
    """Adam whose decay shrinks the weights by `lr * weight_decay` before the step.

    Moments are float32 whatever the weights are, and exist from the start, so that a fresh
    optimizer can take in a saved state. Tensors with fewer than two dimensions (norms, biases) are
    never decayed. A parameter without gradient stays as it is, undecayed.

    Args:
        params: parameters or groups, as for any torch optimizer; shards (`DTensor`) work alike.
        lr: learning rate.
        betas: decay of the moments.
        eps: added to the root of the second moment. RL gradients may be as small as 1e-18: 1e-15
            there.
        weight_decay: decay per unit of learning rate.

    Source: Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)
        for group in self.param_groups:
            for p in group["params"]:
                zero = torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
                self.state[p] = {
                    "step": torch.zeros((), device="cpu"),
                    "mean": zero,
                    "square": zero.clone(),
                }

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step with the gradients in `.grad`; `closure` is not used."""
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            decayed = [p for p in learning if p.ndim >= 2]
            rest = [p for p in learning if p.ndim < 2]
            for params, decay in ((decayed, group["weight_decay"]), (rest, 0.0)):
                if params:
                    self._step(params, group, decay)

    def _step(self, params: list[Tensor], group: dict[str, Any], weight_decay: float) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        states = [self.state[p] for p in params]
        for state in states:
            state["step"] += 1
        grads = [p.grad.float() for p in params if p.grad is not None]
        means, squares = [s["mean"] for s in states], [s["square"] for s in states]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        counts = [float(s["step"]) for s in states]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2**n) ** 0.5 for n in counts])
        torch._foreach_add_(roots, group["eps"])
        moves = torch._foreach_div(means, roots)
        torch._foreach_mul_(moves, [-lr / (1 - beta1**n) for n in counts])
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        moves = [move.to(p.dtype) for move, p in zip(moves, params, strict=True)]
        torch._foreach_add_(params, moves)
