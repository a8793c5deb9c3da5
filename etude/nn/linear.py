"""Matrices and tables without an initial value: `nn.init` or a checkpoint gives it."""

from collections.abc import Callable

import torch


class Linear(torch.nn.Linear):
    """A product with a weight [out, in] and an optional bias, left uninitialised."""

    def reset_parameters(self) -> None:
        """Do nothing: no global random number is drawn while a model is built."""


class WideLinear(Linear):
    """A product whose weight stays float32 (or float64) when the model takes a narrower dtype."""

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> "WideLinear":
        kept = self.weight.data
        super()._apply(fn, recurse)
        if self.weight.dtype in (torch.bfloat16, torch.float16):
            self.weight.data = kept.to(self.weight.device)
        return self


class Embedding(torch.nn.Embedding):
    """A table [V, D] of rows by id, left uninitialised."""

    def reset_parameters(self) -> None:
        """Do nothing: no global random number is drawn while a model is built."""
