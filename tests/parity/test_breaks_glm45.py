"""GLM-4.5 broken on purpose, term by term: the parity bound would not let it pass.

The mildest fault, an eps of 1e-6 for 1e-5, moves 2e-3.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import etude
from etude.nn.attention import Attention
from etude.nn.moe import MoE, Router
from etude.nn.norm import Norm
from tests.parity.cases import names, read
from tests.parity.test_published_outputs import BOUND

NAMES = names("glm45")


def wrong_eps(model):
    for norm in kinds(model, Norm):
        norm.eps = 1e-6 if norm.eps == 1e-5 else 1e-5


def no_selection_bias(model):
    for router in kinds(model, Router):
        router.bias.zero_()


def rule(**change) -> Callable[[nn.Module], None]:
    def apply(model):
        for router in kinds(model, Router):
            router.arch = replace(router.arch, **change)

    return apply


def no_head_norms(model):
    for op in kinds(model, Attention):
        op.q_norm = op.k_norm = None


def query_norm_on_keys(model):
    for op in kinds(model, Attention):
        op.q_norm, op.k_norm = op.k_norm, op.q_norm


def no_key_bias(model):
    for op in kinds(model, Attention):
        op.k.bias.zero_()


def no_rotation(model):
    for op in kinds(model, Attention):
        op.arch = replace(op.arch, rope=None)


def no_shared_expert(model):
    for op in kinds(model, MoE):
        op.shared = None


def hidden_state_first(model):
    weight = model.mtp.join.weight
    weight.copy_(weight.roll(weight.shape[1] // 2, 1))


def extra_norms_swapped(model):
    model.mtp.embed_norm, model.mtp.hidden_norm = model.mtp.hidden_norm, model.mtp.embed_norm


def kinds(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


FAULTS = [
    (wrong_eps, NAMES),
    (no_selection_bias, NAMES),
    (
        rule(scale=1.0),
        ["glm45-grouped", "glm45-large", "glm45-plain", "glm45-wide"],
    ),  # or scaling before normalising
    (rule(normalize=False), ["glm45-air", "glm45-grouped", "glm45-large"]),
    (rule(normalize=True), ["glm45-plain", "glm45-wide"]),
    (rule(groups=1, group_topk=1), ["glm45-grouped"]),
    (no_head_norms, ["glm45-grouped", "glm45-large", "glm45-plain", "glm45-wide"]),
    (query_norm_on_keys, ["glm45-grouped", "glm45-large", "glm45-plain", "glm45-wide"]),
    (no_key_bias, ["glm45-air", "glm45-grouped", "glm45-large", "glm45-wide"]),
    (no_rotation, NAMES),
    (no_shared_expert, NAMES),
    (hidden_state_first, ["glm45-air", "glm45-grouped", "glm45-large", "glm45-wide"]),
    (extra_norms_swapped, ["glm45-air", "glm45-grouped", "glm45-large", "glm45-wide"]),
]


@pytest.mark.parametrize(("fault", "names"), FAULTS)
@torch.no_grad()
def test_a_model_broken_on_purpose_is_far_outside_the_bound(fault, names):
    """Each fault moves an output of each case that has the part at all by 20 bounds or more."""
    for name in names:
        told = read(name).told
        model = etude.load(read(name).path)
        fault(model)
        gap = (model(told["ids"]) - told["logits"]).abs().max()
        if model.mtp is not None:
            gap = max(gap, (model.mtp_logits(told["ids"]) - told["mtp.logits"]).abs().max())
        assert gap > 20 * BOUND, name
