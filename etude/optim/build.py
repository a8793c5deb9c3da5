"""Optimizers of a model from their description, and the two handled as one."""

from typing import Any

import torch
from torch import nn

from etude import arch
from etude.optim.adamw import AdamW
from etude.optim.muon import Cut, Muon
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
            is on AdamW by our choice. So are a table of positions and the filters of a convolution,
            which are one vector per channel and no matrix.

    Returns:
        Hidden matrices and stacks of expert matrices, each alone; and everything else.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    aside = ("embed.weight", "positions.weight", "conv.weight")
    aside += ("head.weight",) if head == "adamw" else ()
    hidden = {name: p for name, p in named.items() if p.ndim >= 2 and not name.endswith(aside)}
    return hidden, {name: p for name, p in named.items() if name not in hidden}


def cuts(model: nn.Module) -> dict[str, Cut]:
    """Tell which parameters hold several matrices that one product computes, by name.

    Each of q, k and v of lightning attention, whose rows stand by head, and each of z, x, B, C and
    dt of Mamba-2 is a matrix of its own to Muon: orthogonalised as one they would share their
    singular vectors. A stored matrix of latent attention, gate, or expert stays whole, as in the
    reports that train those with Muon (Moonlight, arXiv:2502.16982; Kimi K2, arXiv:2507.20534).
    """
    found: dict[str, Cut] = {}
    for name, module in model.named_modules():
        match getattr(module, "arch", None):
            case arch.Lightning() as op:
                found[f"{name}.qkv.weight"] = Cut(op.heads, (op.head_dim,) * 3)
            case arch.Mamba2() as op:
                shared = (op.channels - op.inner) // 2
                sizes = (op.inner, op.inner, shared, shared, op.heads)
                found[f"{name}.in_proj.weight"] = Cut(1, sizes)
    return found


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
                cuts={hidden[name]: cut for name, cut in cuts(model).items() if name in hidden},
            )
            adamw = AdamW(rest.values(), other, **adam)
            return Optimizers(hidden | rest, {"muon": (muon, peak), "adamw": (adamw, other)})
