"""Matrices and tables without an initial value: `nn.init` or a checkpoint gives it."""

import torch


class Linear(torch.nn.Linear):
    """A product with a weight [out, in] and an optional bias, left uninitialised."""

    def reset_parameters(self) -> None:
        """Do nothing: no global random number is drawn while a model is built."""


class Embedding(torch.nn.Embedding):
    """A table [V, D] of rows by id, left uninitialised."""

    def reset_parameters(self) -> None:
        """Do nothing: no global random number is drawn while a model is built."""
