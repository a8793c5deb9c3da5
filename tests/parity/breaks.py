"""Ways to break a model on purpose that families share, and how far its outputs then move."""

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

import torch
from torch import nn

import etude
from tests.parity.cases import read

Fault = Callable[[nn.Module], None]


def kinds(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def each(kind, fault) -> Fault:
    """Break every module of a kind."""

    def apply(model):
        for module in kinds(model, kind):
            fault(module)

    apply.__name__ = fault.__name__
    return apply


def change(kind, **fields) -> Fault:
    """Change fields of the descriptions that modules of a kind go by."""

    def fault(module):
        module.arch = replace(module.arch, **fields)

    fault.__name__ = "_".join(fields)
    return each(kind, fault)


def zero(kind, name) -> Fault:
    """Leave a tensor of every module of a kind out of the sums."""

    def fault(module):
        attrgetter(name)(module).zero_()

    fault.__name__ = f"no_{name}"
    return each(kind, fault)


def wrong_eps(norm):
    norm.eps = 1e-6 if norm.eps == 1e-5 else 1e-5


def no_shared_expert(op):
    op.shared = None


def hidden_state_first(model):
    weight = model.mtp.join.weight
    weight.copy_(weight.roll(weight.shape[1] // 2, 1))


def extra_norms_swapped(model):
    model.mtp.embed_norm, model.mtp.hidden_norm = model.mtp.hidden_norm, model.mtp.embed_norm


def gap(model, told):
    """The largest distance of any logit, the extra layer's too, from what was recorded."""
    found = (model(told["ids"]) - told["logits"]).abs().max()
    if "mtp.logits" in told:
        found = max(found, (model.mtp_logits(told["ids"]) - told["mtp.logits"]).abs().max())
    return found.item()


@torch.no_grad()
def gaps(fault, cases):
    """How far a fault moves the outputs, by recorded case."""
    found = {}
    for name in cases:
        case = read(name)
        model = etude.load(case.path)
        fault(model)
        found[name] = gap(model, case.told)
    return found
