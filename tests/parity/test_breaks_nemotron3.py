"""Nemotron 3 broken on purpose, term by term: the parity bound would not let it pass.

The mildest fault, an eps of 1e-6 for 1e-5, moves 1e-2; all others 0.7 or more.
"""

from dataclasses import replace

import pytest
import torch

import etude
from etude.arch import Rope
from etude.nn import mamba2 as part
from etude.nn.attention import Attention
from etude.nn.mamba2 import Mamba2
from etude.nn.mlp import MLP, F
from etude.nn.moe import Experts, MoE, Router
from etude.nn.norm import Norm
from etude.ops.norm import rms_norm
from tests.parity.breaks import (
    change,
    each,
    extra_norms_swapped,
    gap,
    gaps,
    hidden_state_first,
    kinds,
    no_shared_expert,
    wrong_eps,
    zero,
)
from tests.parity.cases import BOUND, names, read

NAMES = names("nemotron3")
SPARSE = [name for name in NAMES if name != "nemotron3-dense"]
AHEAD = ["nemotron3-super", "nemotron3-ultra"]


def rates_not_exponentiated(op):
    op.a_log.copy_(op.a_log.exp().log1p())


def no_convolution(op):
    op.conv.weight[:, :, :-1] = 0


def taps_reversed(op):
    op.conv.weight.copy_(op.conv.weight.flip(-1))


def norm_before_gate(op):
    def gated(y, z):
        v = rms_norm(y.unflatten(-1, (op.arch.groups, -1)), y.new_ones(()), op.eps).flatten(2)
        return op.norm.weight * v * F.silu(z)

    op._gated = gated


def norm_over_all_groups(op):
    op._gated = lambda y, z: rms_norm(y * F.silu(z), op.norm.weight, op.eps)


def no_gate(op):
    op._gated = lambda y, z: rms_norm(
        y.unflatten(-1, (op.arch.groups, -1)), op.norm.weight.view(op.arch.groups, -1), op.eps
    ).flatten(2)


def groups_dealt_in_turn(op):
    """Head h would read group h % G."""
    heads, groups, width = op.arch.heads, op.arch.groups, op.arch.head_dim
    order = torch.arange(heads).view(-1, groups).t().flatten()  # heads of a group side by side
    rows = (order[:, None] * width + torch.arange(width)).flatten()
    inner, weight = op.arch.inner, op.in_proj.weight
    for start in (0, inner):
        weight[start : start + inner] = weight[start + rows]
    weight[-heads:] = weight[-heads:][order]
    op.conv.weight[:inner] = op.conv.weight[rows]
    if op.conv.bias is not None:
        op.conv.bias[:inner] = op.conv.bias[rows]
    for vector in (op.a_log, op.d, op.dt_bias):
        vector.copy_(vector[order])
    op.norm.weight.copy_(op.norm.weight[rows])
    op.o.weight.copy_(op.o.weight[:, rows])


def relu_without_its_square(op):
    op.act = F.relu


def rotated(model):
    rope = Rope(theta=100.0)
    for op in kinds(model, Attention):
        op.arch, op.turns = replace(op.arch, rope=rope), op.arch.head_dim
    model.ropes = model.rotary()


def shared_expert_behind_the_latent(op):
    op.shared.up.weight.copy_(op.shared.up.weight @ op.latent_out.weight @ op.latent_in.weight)


def trunk_norm_left_out(model):
    model.mtp.arch = replace(model.mtp.arch, start="raw")


FAULTS = [
    (each((Norm, Mamba2), wrong_eps), NAMES),
    (zero(Mamba2, "d"), NAMES),
    (zero(Mamba2, "dt_bias"), NAMES),
    (each(Mamba2, rates_not_exponentiated), NAMES),
    (each(Mamba2, no_convolution), NAMES),
    (each(Mamba2, taps_reversed), NAMES),
    (zero(Mamba2, "conv.bias"), SPARSE),
    (each(Mamba2, norm_before_gate), NAMES),
    (each(Mamba2, norm_over_all_groups), SPARSE),
    (each(Mamba2, no_gate), NAMES),
    (each(Mamba2, groups_dealt_in_turn), SPARSE),
    (change(Mamba2, dt_limit=(0.3, None)), NAMES),
    (change(Mamba2, dt_limit=(0.0, 0.5)), NAMES),
    (each(Experts, relu_without_its_square), SPARSE),
    (each(MLP, relu_without_its_square), NAMES),
    (rotated, NAMES),
    (change(Attention, scale=1.0), NAMES),
    (zero(Router, "bias"), SPARSE),
    (change(Router, scale=1.0), SPARSE),
    (change(Router, normalize=False), SPARSE),
    (change(Router, groups=1, group_topk=1), ["nemotron3-ultra"]),
    (each(MoE, no_shared_expert), SPARSE),
    (each(MoE, shared_expert_behind_the_latent), AHEAD),
    (hidden_state_first, AHEAD),
    (extra_norms_swapped, AHEAD),
    (trunk_norm_left_out, AHEAD),
]


@pytest.mark.parametrize(("fault", "cases"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_model_broken_on_purpose_is_far_outside_the_bound(fault, cases):
    """Each fault moves an output of each case that has the part at all by 20 bounds or more."""
    found = gaps(fault, cases)
    assert min(found.values()) > 20 * BOUND, found


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_state_that_starts_each_chunk_anew_is_far_outside_the_bound(name, monkeypatch):
    def forgetful(x, dt, a, b, c, *, starts, chunk):
        cut = [p.split(8, 1) for p in (x, dt, b, c)]
        rows = [part_ssd(x, dt, a, b, c, chunk=8)[0] for x, dt, b, c in zip(*cut, strict=True)]
        return torch.cat(rows, 1), None

    part_ssd = part.ssd
    monkeypatch.setattr(part, "ssd", forgetful)
    assert gap(etude.load(read(name).path), read(name).told) > 20 * BOUND
