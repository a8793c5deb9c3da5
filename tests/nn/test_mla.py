"""Latent attention: two forms, one result; every cut of a row; documents and padding."""

import math
from dataclasses import replace

import pytest
import torch

from etude.arch import MLA, MLP, Decoder, Init, Norm, Residual, Rope, YaRN
from etude.nn import build, mla
from etude.nn.cache import Cache
from etude.nn.context import Context, Group
from etude.nn.init import initialise
from etude.ops.rope import tables

YARN = YaRN(factor=4.0, original_length=8, beta_fast=2.0, mscale=0.7, mscale_all_dim=1.3)
ROPE = Rope(theta=50.0, pairs="interleaved", scaling=YARN)
OPS = {
    "ranked": MLA(3, 10, 6, 5, 4, 3, ROPE, bias=True),
    "direct": MLA(2, None, 7, 4, 6, 4, ROPE),
    "halves": MLA(2, 5, 3, 8, 2, 12, replace(ROPE, pairs="half", scaling=None)),
}
DIM, VOCAB = 16, 40
# measured 4e-6 in float32 on values of 1 to 3, 1e-14 in float64; a term left out moves 1e-2
CLOSE = {torch.float32: {"atol": 3e-5, "rtol": 0}, torch.float64: {"atol": 1e-12, "rtol": 0}}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def made(op, dtype=torch.float32, **how):
    """A decoder of two layers whose every weight matters."""
    layer = (Residual(op), Residual(MLP(24)))
    plan = Decoder(DIM, VOCAB, (layer, layer), Norm(eps=1e-5), max_length=64, init=Init(std=0.3))
    model = initialise(build.decoder(replace(plan, **how)), seed=3)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor += 0.3 * torch.randn(tensor.shape)
    return model.to(dtype)


def mixer(op, dtype=torch.float32):
    return made(op, dtype).layers[0].mixer.op


def formula(module, x, pos):
    """One row as the equations read: [T, D] and positions to [T, D], head by head."""
    op = module.arch
    q = x
    if op.q_rank:
        q = module.q_norm(x @ module.q_down.weight.T + (module.q_down.bias if op.bias else 0))
    q = (q @ module.q_up.weight.T).unflatten(-1, (op.heads, op.key))
    down = x @ module.kv_down.weight.T + (module.kv_down.bias if op.bias else 0)
    c, k_r = module.kv_norm(down[:, : op.kv_rank]), down[:, op.kv_rank :]
    kv = (c @ module.kv_up.weight.T).unflatten(-1, (op.heads, op.nope + op.value))
    heads = []
    for h in range(op.heads):
        q_r, k = turned(op, q[:, h, op.nope :], pos), kv[:, h, : op.nope]
        score = q[:, h, : op.nope] @ k.T + q_r @ turned(op, k_r, pos).T
        hidden = torch.ones(len(x), len(x)).triu(1).bool()
        weight = (score * scale(op)).masked_fill(hidden, -math.inf).softmax(-1)
        heads.append(weight @ kv[:, h, op.nope :])
    y = torch.cat(heads, -1) @ module.o.weight.T
    return y + module.o.bias if op.bias else y


def scale(op):
    """(N + P)^-1/2 times the square of the amplitude that belongs to all dimensions."""
    yarn = op.rope.scaling
    grown = 1 + 0.1 * yarn.mscale_all_dim * math.log(yarn.factor) if yarn else 1
    return grown**2 / math.sqrt(op.nope + op.rope_dim)


def turned(op, x, pos):
    """Turn pair by pair; the tables carry the ratio of both amplitudes."""
    cos, sin = tables(pos, op.rope, op.rope_dim, dtype=x.dtype)
    out = x.clone()
    for i in range(op.rope_dim // 2):
        near = op.rope.pairs == "interleaved"
        a, b = (2 * i, 2 * i + 1) if near else (i, i + op.rope_dim // 2)
        out[:, a] = x[:, a] * cos[:, 0, a] - x[:, b] * sin[:, 0, b]
        out[:, b] = x[:, b] * cos[:, 0, b] + x[:, a] * sin[:, 0, b]
    return out


def alone(module, x):
    """Context of rows [B, T, D] that stand by themselves."""
    pos = torch.arange(x.shape[1])[None]
    rope, width = module.rotary
    return Context({(rope, width): tables(pos, rope, width, dtype=x.dtype)}, pos)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_module_computes_the_formula_with_its_gradients(op, length):
    module = mixer(op, torch.float64)
    x = torch.randn(length, DIM, dtype=torch.float64, requires_grad=True)
    leaves = (x, *module.parameters())
    ours = module(x[None], alone(module, x[None]))[0]
    theirs = formula(module, x, torch.arange(length))
    torch.testing.assert_close(ours, theirs, **CLOSE[torch.float64])
    way = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, leaves, way),
        torch.autograd.grad(theirs, leaves, way),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


def parts(op, new, stored, dtype):
    shapes = ((new, op.heads, op.nope), (new, op.heads, op.rope_dim))
    shapes += ((stored, op.kv_rank), (stored, op.rope_dim))
    return [torch.randn(2, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("new", "stored"), [(1, 1), (1, 9), (3, 11), (7, 7)])
def test_the_absorbed_form_equals_the_expanded_one_in_values_and_gradients(op, new, stored, dtype):
    module, given = mixer(op, dtype), parts(op, new, stored, dtype)
    causal = new == stored
    late = torch.arange(stored) <= torch.arange(stored - new, stored)[:, None]
    mask = None if causal else late[None, None].expand(2, 1, -1, -1)
    packed = module.pack()
    leaves = (*given, module.kv_up.weight)
    found = [
        form(packed, *given, mask, causal=causal) for form in (module.expanded, module.absorbed)
    ]
    torch.testing.assert_close(*found, **CLOSE[dtype])
    way = torch.randn_like(found[0])
    grads = [torch.autograd.grad(y, leaves, way, retain_graph=True) for y in found]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("cuts", [[12], [5, 7], [5, 1, 1, 1, 1, 1, 1, 1], [1] * 12, [3, 1, 8]])
@torch.no_grad()
def test_any_cut_of_a_row_gives_the_whole(op, cuts, dtype):
    model, ids = made(op, dtype), torch.randint(0, VOCAB, (3, 12))
    cache = Cache(model, rows=3, capacity=12)
    pieces = [model(part, cache=cache) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), **CLOSE[dtype])


@torch.no_grad()
def test_one_token_reads_latents_and_a_long_chunk_makes_keys(monkeypatch):
    used = []
    for form in ("absorbed", "expanded"):
        own = getattr(mla.MLA, form)

        def told(self, *args, form=form, own=own, **how):
            used.append(form)
            return own(self, *args, **how)

        monkeypatch.setattr(mla.MLA, form, told)
    model = made(OPS["ranked"])
    cache = Cache(model, rows=1, capacity=60)
    for new in (20, 1, 30, 2):
        model(torch.zeros(1, new).long(), cache=cache)
    # R (N + V) = 48 against 2 R + P - N - P - V = 4 a query: fewer than 12 queries absorb
    assert used[::2] == ["expanded", "absorbed", "expanded", "absorbed"]


@torch.no_grad()
def test_rows_of_different_lengths_go_on_from_where_each_ended(op):
    model, lengths = made(op), (6, 3, 1)
    heads, tails = torch.randint(0, VOCAB, (3, 6)), torch.randint(0, VOCAB, (3, 5))
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    cache = Cache(model, rows=3, capacity=16)
    first = model(heads, mask=mask, cache=cache)
    after = torch.cat([model(part, cache=cache) for part in tails.split([2, 1, 2], 1)], 1)
    for i, n in enumerate(lengths):
        whole = model(torch.cat((heads[i, :n], tails[i]))[None])[0]
        torch.testing.assert_close(first[i, :n], whole[:n], **CLOSE[torch.float32])
        torch.testing.assert_close(after[i], whole[n:], **CLOSE[torch.float32])


@torch.no_grad()
def test_padding_on_either_side_and_packed_documents_change_nothing(op):
    model = made(op)
    rows = [torch.randint(0, VOCAB, (n,)) for n in (7, 4, 1)]
    whole = [model(row[None])[0] for row in rows]
    joined = model(torch.cat(rows)[None], segments=torch.tensor([[1] * 7 + [2] * 4 + [3]]))[0]
    torch.testing.assert_close(joined, torch.cat(whole), **CLOSE[torch.float32])
    for left in (True, False):
        ids = torch.randint(0, VOCAB, (3, 7))
        mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
        mask = mask.flip(1) if left else mask
        ids[mask] = torch.cat(rows)
        torch.testing.assert_close(
            model(ids, mask=mask)[mask], torch.cat(whole), **CLOSE[torch.float32]
        )


@torch.no_grad()
def test_a_flat_pass_over_sequences_gives_what_each_gives_alone(op):
    module = mixer(op)
    x, lengths = torch.randn(1, 11, DIM), (4, 4, 3)
    pos = torch.cat([torch.arange(n) for n in lengths])[None]
    rope, width = module.rotary
    turns = {(rope, width): tables(pos, rope, width)}
    ends = [(0, 4), (4, 8), (8, 11)]
    pair, last = torch.arange(8).view(2, 4), torch.arange(8, 11)[None]
    groups = [Group(at, Context(turns, pos)) for at in (pair, last)]
    flat = module(x, Context(turns, pos, groups=groups))[0]
    each = [module(x[:, a:b], alone(module, x[:, a:b]))[0] for a, b in ends]
    torch.testing.assert_close(flat, torch.cat(each), **CLOSE[torch.float32])


@torch.no_grad()
def test_the_cache_holds_latent_and_turned_key_of_a_token_and_nothing_more():
    op = OPS["ranked"]
    model = made(op)
    cache = Cache(model, rows=1, capacity=5)
    held = {name: tuple(slot.shape) for name, slot in cache.slots[0].items()}
    assert held == {"latent": (1, 5, op.kv_rank), "turned": (1, 5, op.rope_dim)}


@torch.no_grad()
def test_a_bfloat16_model_attends_in_either_form():
    model = made(OPS["ranked"]).to(torch.bfloat16)
    cache, ids = Cache(model, rows=1, capacity=24), torch.randint(0, VOCAB, (1, 24))
    logits = torch.cat([model(part, cache=cache) for part in ids.split([20, 1, 1, 1, 1], 1)], 1)
    assert cache.slots[0]["latent"].dtype == torch.bfloat16
    assert torch.cosine_similarity(logits.flatten(), model(ids).flatten(), dim=0) > 0.99


@torch.no_grad()
def test_a_new_rotary_base_and_scaling_reach_every_table():
    from etude.train.rope import set_rope

    op, slower = OPS["ranked"], replace(YARN, factor=9.0)
    model, ids = made(op), torch.randint(0, VOCAB, (1, 9))
    set_rope(model, theta=777.0, yarn=slower)
    other, old = made(replace(op, rope=Rope(777.0, 1.0, "interleaved", slower))), made(op)
    other.load_state_dict(model.state_dict())
    old.load_state_dict(model.state_dict())
    assert torch.equal(model(ids), other(ids))
    assert (model(ids) - old(ids)).abs().max() > 1e-2
