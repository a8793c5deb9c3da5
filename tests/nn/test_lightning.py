"""Lightning attention as a mixer: its formula, its state in a cache, packing, first values."""

import pytest
import torch

from etude import arch
from etude.nn import build
from etude.nn.cache import Cache
from etude.nn.context import Context, Group
from etude.nn.init import initialise
from etude.nn.lightning import Lightning
from tests.nn.helpers import VOCAB, rows

DIM, OP = 16, arch.Lightning(heads=6, head_dim=4, decay=0.7, block=4, norm_eps=1e-3)


def description(op=OP):
    """Lightning, softmax, lightning, with a skip of the normed value."""
    soft = arch.Attention(4, 2, 8, rope=arch.Rope(theta=100.0, fraction=0.5))
    sparse = arch.MoE(arch.MLP(12), experts=4, active=2, router=arch.Router("softmax", wide=True))
    layers = [
        tuple(arch.Residual(part, skip="normed", alpha=1.5, beta=0.8) for part in (mix, sparse))
        for mix in (op, soft, op)
    ]
    return arch.Decoder(
        dim=DIM, vocab=VOCAB, layers=tuple(layers), max_length=64, init=arch.Init(std=0.3)
    )


@pytest.fixture
def model():
    made = initialise(build.decoder(description()), seed=3).double()
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.ndim == 1:
                tensor += 0.2 * torch.randn_like(tensor)
    return made.requires_grad_(False)


def test_the_mixer_is_its_formula(model):
    """arXiv:2501.08313, section 2.2, with the rows of each head side by side and silu on all."""
    mixer = model.layers[0].mixer.op
    x = torch.randn(1, 9, DIM, dtype=torch.float64)
    y, state = [], torch.zeros(6, 4, 4, dtype=torch.float64)
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]  # ALiBi's six: four, and two of eight
    decay = torch.tensor([0.7 * s for s in slopes], dtype=torch.float64).neg().exp()
    for token in x[0]:
        z = mixer.qkv.weight @ token
        q, k, v = (z * z.sigmoid()).view(6, 3, 4).unbind(1)
        state = decay[:, None, None] * state + k[:, :, None] * v[:, None, :]
        o = torch.einsum("hk,hkw->hw", q, state).flatten()
        o = mixer.norm.weight * o / (o.square().mean() + 1e-3).sqrt()
        y.append(mixer.o.weight @ ((mixer.gate.weight @ token).sigmoid() * o))
    index = torch.arange(9)[None]
    torch.testing.assert_close(mixer(x, Context({}, index)), torch.stack(y)[None])


@pytest.mark.parametrize("cuts", [(23,), (1,) * 23, (9, 1, 13), (5, 6, 7, 5), (22, 1)])
def test_a_row_read_in_any_pieces_gives_the_same_logits(model, cuts):
    ids = torch.stack(rows(23, 23))
    cache = Cache(model, rows=2, capacity=23)
    pieces = [model(piece, cache=cache) for piece in ids.split(cuts, 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids))


def test_rows_of_different_lengths_share_a_cache(model):
    prompts, news = rows(11, 3, 7), rows(6, 6, 6)
    cache = Cache(model, rows=3, capacity=20)
    ids, mask = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.bool)
    for n, prompt in enumerate(prompts):
        ids[n, : len(prompt)], mask[n, : len(prompt)] = prompt, True
    model(ids, mask=mask, cache=cache)
    steps = [model(torch.stack(news)[:, t : t + 1], cache=cache) for t in range(5)]
    last = torch.ones(3, 1, dtype=torch.bool)
    last[1] = False  # a row that has nothing more to say
    steps.append(model(torch.stack(news)[:, 5:], mask=last, cache=cache))
    for n, (prompt, new) in enumerate(zip(prompts, news, strict=True)):
        alone = model(torch.cat((prompt, new))[None])[0, len(prompt) :]
        said = 5 if n == 1 else 6
        torch.testing.assert_close(torch.cat(steps, 1)[n, :said], alone[:said])
    state = cache.state(0, "kv")[1]
    other = Cache(model, rows=1, capacity=20)
    model(torch.cat((prompts[1], news[1][:5]))[None], cache=other)
    torch.testing.assert_close(state, other.state(0, "kv")[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(model, side):
    long, short = rows(13, 6)
    ids, mask = torch.zeros(2, 13, dtype=torch.long), torch.ones(2, 13, dtype=torch.bool)
    at = slice(7, 13) if side == "left" else slice(0, 6)
    ids[0], ids[1, at], mask[1] = long, short, False
    mask[1, at] = True
    logits = model(ids, mask=mask)
    torch.testing.assert_close(logits[0], model(long[None])[0])
    torch.testing.assert_close(logits[1, at], model(short[None])[0])


def test_packed_documents_give_what_each_gives_alone_with_its_gradients(model):
    model.requires_grad_(True)
    parts = rows(9, 1, 13)
    segments = torch.repeat_interleave(torch.tensor([1, 2, 3]), torch.tensor([9, 1, 13]))
    together = model(torch.cat(parts)[None], segments=segments[None])[0]
    alone = torch.cat([model(part[None])[0] for part in parts])
    torch.testing.assert_close(together, alone)
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(together.cos().sum(), weights)
    expected = torch.autograd.grad(alone.cos().sum(), weights)
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
        assert a.abs().max() > 0, name


def test_a_flat_pass_over_two_sequences_gives_what_each_gives_alone(model):
    mixer, x = model.layers[0].mixer.op, torch.randn(1, 12, DIM, dtype=torch.float64)
    at = [torch.arange(5)[None], torch.arange(5, 12)[None]]
    groups = [Group(one, Context({}, one)) for one in at]
    flat = mixer(x, Context({}, torch.arange(12)[None], groups=groups))
    alone = [mixer(x[:, one[0]], Context({}, one)) for one in at]
    torch.testing.assert_close(flat, torch.cat(alone, 1))


def test_without_forgetting_the_first_token_is_never_lost():
    """Decay 0 is plain linear attention: the state is the sum of all outer products."""
    plain = Lightning(DIM, arch.Lightning(heads=2, head_dim=4, decay=0.0))
    for p in plain.parameters():
        torch.nn.init.normal_(p)
    q, k, v = torch.randn(3, 1, 300, 2, 4).unbind()
    rates, decay = plain.pack()[2:]
    y = plain._mix(rates, decay, Context({}, torch.arange(300)[None]), q, k, v)
    sums = torch.einsum("bthk,bthw->bthkw", k, v).cumsum(1)
    torch.testing.assert_close(y, torch.einsum("bthk,bthkw->bthw", q, sums), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.double, torch.double)],
)
def test_the_state_is_float32_at_least_under_any_dtype(dtype, kept):
    model = initialise(build.decoder(description()), seed=3).to(dtype).requires_grad_(False)
    cache = Cache(model, rows=1, capacity=8)
    model(rows(5)[0][None], cache=cache)
    assert model(rows(1)[0][None], cache=cache).isfinite().all()
    assert cache.state(0, "kv").dtype == kept


def test_a_wide_router_stays_float32_wherever_the_model_goes():
    model = initialise(build.decoder(description()), seed=3)
    before = model.layers[0].ffn.op.router.weight.detach().clone()
    for moved in (model.to(torch.bfloat16), model.half(), model.bfloat16().float()):
        assert torch.equal(moved.layers[0].ffn.op.router.weight, before)
    assert model.double().layers[0].ffn.op.router.weight.dtype == torch.float64


def test_deepnorm_scales_values_outputs_and_feed_forwards_alone():
    """arXiv:2203.00555; of lightning's joint rows only each head's last third are values."""
    op = arch.Lightning(heads=8, head_dim=16)
    layer = (arch.Residual(op), arch.Residual(arch.MLP(256)))
    plan = arch.Decoder(
        dim=128, vocab=512, layers=(layer,), init=arch.Init(rule="xavier", gain=0.1)
    )
    state = initialise(build.decoder(plan), seed=0).state_dict()
    q, k, v = state["layers.0.mixer.op.qkv.weight"].view(8, 3, 16, 128).unbind(1)
    square, wide = (2 / 256) ** 0.5, (2 / 384) ** 0.5  # q, k and v are three matrices
    for matrix, std in (
        (q, square),
        (k, square),
        (v, square / 10),
        (state["layers.0.mixer.op.gate.weight"], square),
        (state["layers.0.mixer.op.o.weight"], square / 10),
        (state["layers.0.ffn.op.gate.weight"], wide / 10),
        (state["layers.0.ffn.op.up.weight"], wide / 10),
        (state["layers.0.ffn.op.down.weight"], wide / 10),
        (state["embed.weight"], (2 / 640) ** 0.5),
    ):
        assert matrix.std().item() == pytest.approx(std, rel=0.03)
