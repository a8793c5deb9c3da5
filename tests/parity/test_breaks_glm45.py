"""GLM-4.5 broken on purpose, term by term: the parity bound would not let it pass.

The mildest fault, an eps of 1e-6 for 1e-5, moves 2e-3.
"""

import pytest

from etude.nn.attention import Attention
from etude.nn.moe import MoE, Router
from etude.nn.norm import Norm
from tests.parity.breaks import (
    change,
    each,
    extra_norms_swapped,
    gaps,
    hidden_state_first,
    no_shared_expert,
    wrong_eps,
    zero,
)
from tests.parity.cases import BOUND, names

NAMES = names("glm45")
NORMED = [name for name in NAMES if name != "glm45-air"]
BIASED = [name for name in NAMES if name != "glm45-plain"]  # with an extra layer, too


def no_head_norms(op):
    op.q_norm = op.k_norm = None


def query_norm_on_keys(op):
    op.q_norm, op.k_norm = op.k_norm, op.q_norm


FAULTS = [
    (each(Norm, wrong_eps), NAMES),
    (zero(Router, "bias"), NAMES),
    (
        change(Router, scale=1.0),
        NORMED,
    ),  # or scaling before normalising
    (change(Router, normalize=False), ["glm45-air", "glm45-grouped", "glm45-large"]),
    (change(Router, normalize=True), ["glm45-plain", "glm45-wide"]),
    (change(Router, groups=1, group_topk=1), ["glm45-grouped"]),
    (each(Attention, no_head_norms), NORMED),
    (
        each(Attention, query_norm_on_keys),
        NORMED,
    ),
    (zero(Attention, "k.bias"), BIASED),
    (change(Attention, rope=None), NAMES),
    (each(MoE, no_shared_expert), NAMES),
    (hidden_state_first, BIASED),
    (extra_norms_swapped, BIASED),
]


@pytest.mark.parametrize(("fault", "cases"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_model_broken_on_purpose_is_far_outside_the_bound(fault, cases):
    """Each fault moves an output of each case that has the part at all by 20 bounds or more."""
    found = gaps(fault, cases)
    assert min(found.values()) > 20 * BOUND, found
