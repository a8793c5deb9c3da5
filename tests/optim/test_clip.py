"""QK-clip against scores worked out by hand: what was too large is tau, all else keeps its bits."""

from dataclasses import replace

import pytest
import torch

from etude.arch import MLA, Attention, Rope
from etude.optim.clip import clip_heads, shares

TOKENS, DIM = 6, 8
PLAIN = Attention(heads=2, kv_heads=2, head_dim=4, qkv_bias=True)
GROUPED = replace(PLAIN, heads=4)
LATENT = MLA(2, 5, 6, 4, 2, 3, Rope(theta=50.0, pairs="interleaved"))
ROOT = 0.5**0.5


def plain(op):
    rows = {"q": op.heads * op.head_dim, "k": op.kv_heads * op.head_dim}
    weights = {f"{part}.weight": torch.randn(count, DIM) for part, count in rows.items()}
    return weights | {f"{part}.bias": torch.randn(count) for part, count in rows.items()}


def plain_scores(op, weights, x):
    """Every score of each head [H, T, T], as the formula reads; positions do not turn here."""
    q, k = (
        (x @ weights[f"{p}.weight"].T + weights[f"{p}.bias"]).unflatten(-1, (-1, op.head_dim))
        for p in ("q", "k")
    )
    k = k.repeat_interleave(op.heads // op.kv_heads, 1)
    return torch.einsum("thk,shk->hts", q, k) * op.head_dim**-0.5


def latent(op):
    return {
        "q_up.weight": torch.randn(op.heads * op.key, DIM),
        "kv_up.weight": torch.randn(op.heads * (op.nope + op.value), op.kv_rank),
        "kv_down.weight": torch.randn(op.kv_rank + op.rope_dim, DIM),
    }


def latent_scores(op, weights, x):
    down = x @ weights["kv_down.weight"].T
    c, k_turned = down[:, : op.kv_rank], down[:, op.kv_rank :]
    q = (x @ weights["q_up.weight"].T).unflatten(-1, (op.heads, op.key))
    k = (c @ weights["kv_up.weight"].T).unflatten(-1, (op.heads, -1))[..., : op.nope]
    still = torch.einsum("thn,shn->hts", q[..., : op.nope], k)
    return (still + torch.einsum("thp,sp->hts", q[..., op.nope :], k_turned)) * op.scale


def halved(op, weights, scores):
    """Clip at half of head 0's largest score, and above all others; return scores on both sides."""
    x = torch.randn(TOKENS, DIM)
    before = scores(op, weights, x)
    tau = before[0].max() / 2
    top = torch.cat([before[:1].amax((1, 2)), tau.expand(op.heads - 1) - 0.1])
    old = {name: tensor.clone() for name, tensor in weights.items()}
    clip_heads(op, weights, shares(top, tau=float(tau)))
    return before, scores(op, weights, x), old


def test_the_share_of_a_head_is_tau_over_its_largest_score_and_1_below_tau():
    top = torch.tensor([250.0, 100.0, 99.9, -3.0, -torch.inf])
    assert shares(top, tau=100.0).tolist() == pytest.approx([0.4, 1, 1, 1, 1])
    assert shares(top, tau=100.0)[1:].eq(1.0).all()  # exactly, so that nothing is rounded


@pytest.mark.parametrize(
    ("op", "make", "scores"),
    [(PLAIN, plain, plain_scores), (GROUPED, plain, plain_scores), (LATENT, latent, latent_scores)],
    ids=["heads", "shared keys", "latent"],
)
def test_a_head_at_twice_tau_comes_back_to_tau_and_others_keep_every_bit(op, make, scores):
    torch.manual_seed(1)
    before, after, _ = halved(op, make(op), scores)
    # measured 5e-7; scaling one side only, or both by g, moves 1
    torch.testing.assert_close(after[0], before[0] / 2, atol=1e-5, rtol=0)
    assert after[1:].equal(before[1:])


@pytest.mark.parametrize("silent", ["still", "turning"])
def test_each_part_of_a_latent_head_alone_comes_back_to_tau(silent):
    """The still part shrinks by both roots, the turning part by g on the query alone."""
    torch.manual_seed(2)
    weights = latent(LATENT)
    q = weights["q_up.weight"].unflatten(0, (LATENT.heads, LATENT.key))
    part = slice(0, LATENT.nope) if silent == "still" else slice(LATENT.nope, None)
    q[:, part] = 0
    before, after, _ = halved(LATENT, weights, latent_scores)
    assert before[0].max() > 0.5
    torch.testing.assert_close(after[0], before[0] / 2, atol=1e-5, rtol=0)


def test_which_rows_of_a_latent_layer_are_scaled_and_by_what():
    """Kimi K2 section 2.1: q_c and k_c by the root, q_r by g, shared k_r and values untouched."""
    torch.manual_seed(3)
    op, weights = LATENT, latent(LATENT)
    _, _, old = halved(op, weights, latent_scores)
    q, kv = (
        (weights[name] / old[name]).unflatten(0, (op.heads, -1))
        for name in ("q_up.weight", "kv_up.weight")
    )
    for found, expected in (
        (q[0, : op.nope], ROOT),
        (q[0, op.nope :], 0.5),
        (kv[0, : op.nope], ROOT),
        (kv[0, op.nope :], 1.0),
    ):
        torch.testing.assert_close(found, torch.full_like(found, expected), atol=1e-6, rtol=0)
    values = weights["kv_up.weight"].unflatten(0, (op.heads, -1))[:, op.nope :]
    assert values.equal(old["kv_up.weight"].unflatten(0, (op.heads, -1))[:, op.nope :])
    assert weights["kv_down.weight"].equal(old["kv_down.weight"])


def test_keys_that_several_heads_share_stay_and_their_own_take_half_of_the_work():
    torch.manual_seed(4)
    weights = plain(GROUPED)
    _, _, old = halved(GROUPED, weights, plain_scores)
    assert weights["k.weight"].equal(old["k.weight"]) and weights["k.bias"].equal(old["k.bias"])
    weights = plain(PLAIN)
    _, _, old = halved(PLAIN, weights, plain_scores)
    for name, tensor in weights.items():
        ratio = (tensor / old[name]).unflatten(0, (2, -1))[0]
        torch.testing.assert_close(ratio, torch.full_like(ratio, ROOT), atol=1e-6, rtol=0)


def test_normalised_heads_are_refused_as_no_row_decides_their_scores():
    op = replace(PLAIN, qk_norm=True)
    with pytest.raises(ValueError, match="normalised queries and keys"):
        clip_heads(op, plain(op), torch.ones(2))
