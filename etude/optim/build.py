"""Optimizers of a model from their description, and the two handled as one."""

from typing import Any

import torch
from torch import nn

from etude.optim.adamw import AdamW
from etude.optim.muon import Muon
from etude.recipe import parts
from etude.typing import Tensor

Named = dict[str, nn.Parameter]
Members = dict[str, tuple[torch.optim.Optimizer, float]]  # with the peak learning rate


class Optimizers:
    """All optimizers of a stage: one step, one learning-rate factor, one state by parameter name.

    Attributes:
        members: optimizer of each kind, with the peak of its learning rate.
        names: parameter -> its name in the model.
    """

    def __init__(self, named: Named, members: Members):
        self.members = members
        self.names: dict[Tensor, str] = {p: name for name, p in named.items()}

    @property
    def params(self) -> list[Tensor]:
        """Every trained parameter."""
        return list(self.names)

    def rate(self, factor: float) -> float:
        """Set all learning rates to `factor` of their peaks; return that of the first optimizer."""
        for optimizer, peak in self.members.values():
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        return next(iter(self.members.values()))[1] * factor

    def step(self) -> None:
        """Step every optimizer."""
        for optimizer, _ in self.members.values():
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.names:
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """The live state tensors, by optimizer, parameter and role; writing into them restores.

        Shards stay shards. The learning rate is not among them: it follows from the tokens seen.
        """
        return {
            f"{kind}.{self.names[p]}.{role}": tensor
            for kind, (optimizer, _) in self.members.items()
            for p, values in optimizer.state.items()
            for role, tensor in values.items()
        }


def split(model: nn.Module, *, head: str = "adamw") -> tuple[Named, Named]:
    """Part a model's trained parameters into those for Muon and those for AdamW.

    Args:
        model: a decoder with native names.
        head: where the output head goes. The report names embeddings, biases and norms as the
            exceptions and is silent on the head (GLM-4.5 section 2.4); a matrix over the vocabulary
            is on AdamW by our choice.

    Returns:
        Hidden matrices and stacks of expert matrices, each alone; and everything else.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    aside = {"embed.weight"} | ({"head.weight"} if head == "adamw" else set())
    hidden = {name: p for name, p in named.items() if p.ndim >= 2 and name not in aside}
    return hidden, {name: p for name, p in named.items() if name not in hidden}


def optimizers(model: nn.Module, spec: parts.AdamW | parts.Muon) -> Optimizers:
    """Build what a stage's `optimizer` describes, over every parameter that requires a gradient."""
    adam: dict[str, Any] = {"betas": spec.betas, "eps": spec.eps, "weight_decay": spec.weight_decay}
    match spec:
        case parts.AdamW(learning_rate=peak):
            named = {name: p for name, p in model.named_parameters() if p.requires_grad}
            return Optimizers(named, {"adamw": (AdamW(named.values(), peak, **adam), peak)})
        case parts.Muon(learning_rate=peak):
            hidden, rest = split(model, head=spec.head)
            other = spec.adam_learning_rate or peak
            muon = Muon(
                hidden.values(),
                peak,
                momentum=spec.momentum,
                nesterov=spec.nesterov,
                steps=spec.steps,
                rms=spec.rms,
                weight_decay=spec.weight_decay,
            )
            adamw = AdamW(rest.values(), other, **adam)
            return Optimizers(hidden | rest, {"muon": (muon, peak), "adamw": (adamw, other)})
