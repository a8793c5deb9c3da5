"""GPT-2 and GPT-Neo broken on purpose, term by term: the parity bound would not let it pass.

Measured on logits with a spread of 3, where parity holds to 4.8e-6: the mildest faults are the
exact gelu for its tanh form, 1.8e-3, and an eps of 1e-6 for 1e-5, 1.9e-2; the rest moves 0.1 or
more. A bias of the keys is not among the terms: it adds the same to all scores of a query, which
softmax drops.
"""

from dataclasses import replace

import pytest
import torch.nn.functional as F

from etude.arch import Banded
from etude.nn.attention import Attention
from etude.nn.mlp import MLP
from etude.nn.norm import LayerNorm
from etude.ops.norm import rms_norm
from tests.parity.breaks import change, each, gaps, kinds, wrong_eps, zero
from tests.parity.cases import BOUND, names

NAMES = names("gpt3")
GPT2, NEO = ["gpt3-dense", "gpt3-layered"], ["gpt3-banded", "gpt3-mixed"]


def norms_without_mean(norm):
    norm.forward = lambda x: rms_norm(x, norm.weight, norm.eps) + norm.bias


def exact_gelu(mlp):
    mlp.act = F.gelu


def queries_as_keys(op):
    op.q, op.k = op.k, op.q


def window(more):
    def moved(op):
        if op.arch.span:
            op.arch = replace(op.arch, span=Banded(op.arch.span.width + more))

    moved.__name__ = f"window_{more:+}"
    return each(Attention, moved)


def no_positions(model):
    model.positions.weight.zero_()


def positions_from_one(model):
    model.positions.weight.copy_(model.positions.weight.roll(-1, 0))


def bands_on_the_other_layers(model):
    ops = kinds(model, Attention)
    width = max(op.arch.span.width for op in ops if op.arch.span)
    for op in ops:
        op.arch = replace(op.arch, span=None if op.arch.span else Banded(width))


FAULTS = [
    (each(LayerNorm, wrong_eps), NAMES),
    (each(LayerNorm, norms_without_mean), NAMES),
    (zero(LayerNorm, "bias"), NAMES),
    (no_positions, NAMES),
    (positions_from_one, NAMES),
    (each(MLP, exact_gelu), NAMES),
    (zero(Attention, "q.bias"), GPT2),
    (zero(Attention, "v.bias"), GPT2),
    (zero(Attention, "o.bias"), NAMES),
    (zero(MLP, "up.bias"), NAMES),
    (each(Attention, queries_as_keys), NAMES),
    (change(Attention, scale=1.0), GPT2),
    (change(Attention, scale=None), [*NEO, "gpt3-layered"]),  # or a layer's own factor left out
    (change(Attention, span=None), NEO),
    (window(1), NEO),
    (window(-1), NEO),
    (bands_on_the_other_layers, NEO),
]


@pytest.mark.parametrize(("fault", "cases"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_model_broken_on_purpose_is_far_outside_the_bound(fault, cases):
    """Each fault moves an output of each case that has the part at all by 20 bounds or more."""
    found = gaps(fault, cases)
    assert min(found.values()) > 20 * BOUND, found
