"""The Mamba-2 mixer in a model: cached, packed, padded, flat; its first values and its dtypes.

In float64: measured 1e-14 on logits of size 3; a convolution or a state that crosses a border
moves 1e-2 or more.
"""

from dataclasses import replace

import pytest
import torch

from etude.arch import MLP, Attention, Decoder, Init, Mamba2, Norm, Residual, count, tensors
from etude.nn import build
from etude.nn.cache import Cache
from etude.nn.context import Context, Group
from etude.nn.init import initialise

VOCAB = 40
CLOSE = {"atol": 1e-10, "rtol": 0}
MIXER = Mamba2(heads=6, head_dim=4, state=5, groups=2, chunk=4)


def description(op=MIXER, **more):
    """Three kinds of layer, one sublayer each."""
    layers = (op, MLP(24, gated=False, activation="relu2"), Attention(4, 2, 8), op)
    return Decoder(
        dim=16,
        vocab=VOCAB,
        layers=tuple((Residual(part),) for part in layers),
        norm=Norm(cast="after"),
        max_length=64,
        init=Init(std=0.3),
        **more,
    )


def model(op=MIXER, dtype=torch.float64):
    """Build it with weights that make every term count, and states that last."""
    made = initialise(build.decoder(description(op)).to(dtype), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if tensor.ndim == 1:
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator, dtype=dtype)
            if name.endswith("a_log"):
                tensor -= 1.5
            if name.endswith("dt_bias"):
                tensor += 3.0
    return made


def rows(*lengths):
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, VOCAB, (n,), generator=generator) for n in lengths]


def padded(parts, *, left=False):
    width = max(map(len, parts))
    ids = torch.randint(0, VOCAB, (len(parts), width))  # junk, not zeros
    mask = torch.zeros(len(parts), width, dtype=torch.bool)
    for i, part in enumerate(parts):
        at = slice(width - len(part), None) if left else slice(0, len(part))
        ids[i, at], mask[i, at] = part, True
    return ids, mask


@pytest.mark.parametrize("cuts", [[13], [5, 8], [4, 4, 5], [5, *[1] * 8], [1] * 13, [3, 1, 9]])
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_any_cut_of_a_row_gives_the_whole(batch, cuts):
    m, ids = model(), torch.stack(rows(*[13] * batch))
    cache = Cache(m, rows=batch, capacity=13)
    pieces = [m(part, cache=cache) for part in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), m(ids), **CLOSE)


@torch.no_grad()
def test_rows_of_different_lengths_go_on_from_where_each_ended():
    m, parts, tails = model(), rows(9, 3, 1), torch.stack(rows(5, 5, 5))
    ids, mask = padded(parts)
    cache = Cache(m, rows=3, capacity=16)
    first = m(ids, mask=mask, cache=cache)
    steps = [m(tails[:, :2], cache=cache), *(m(t, cache=cache) for t in tails[:, 2:].split(1, 1))]
    after = torch.cat(steps, 1)
    for i, part in enumerate(parts):
        whole = m(torch.cat((part, tails[i]))[None])[0]
        torch.testing.assert_close(first[i, : len(part)], whole[: len(part)], **CLOSE)
        torch.testing.assert_close(after[i], whole[len(part) :], **CLOSE)


@torch.no_grad()
def test_a_second_padded_chunk_goes_on_behind_the_tokens_of_the_first():
    m, chunks = model(), (rows(7, 2, 1), rows(1, 6, 2))
    cache = Cache(m, rows=3, capacity=16)
    for parts in chunks:
        ids, mask = padded(parts)
        logits = m(ids, mask=mask, cache=cache)
    for i, part in enumerate(chunks[1]):
        whole = m(torch.cat((chunks[0][i], part))[None])[0]
        torch.testing.assert_close(logits[i, : len(part)], whole[-len(part) :], **CLOSE)


@torch.no_grad()
def test_a_row_without_a_token_in_a_step_stays_as_it_was():
    m, ids = model(), torch.stack(rows(6, 6))
    cache = Cache(m, rows=2, capacity=9)
    m(ids, cache=cache)
    before = [cache.state(0, name).clone() for name in ("ssm", "tail")]
    m(ids[:, :1], mask=torch.tensor([[True], [False]]), cache=cache)
    for name, old in zip(("ssm", "tail"), before, strict=True):
        assert torch.equal(cache.state(0, name)[1], old[1])
        assert not torch.equal(cache.state(0, name)[0], old[0])


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_neither_outputs_nor_gradients(left):
    m, parts = model(), rows(11, 6, 2)
    ids, mask = padded(parts, left=left)
    m(ids, mask=mask)[mask].sin().sum().backward()
    grads = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    logits = m(ids, mask=mask)
    for i, part in enumerate(parts):
        alone = m(part[None])[0]
        torch.testing.assert_close(logits[i][mask[i]], alone, **CLOSE)
        alone.sin().sum().backward()
    for mine, p in zip(grads, m.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, **CLOSE)


@pytest.mark.parametrize("lengths", [[4, 9], [3, 1, 1, 8], [8, 5], [12, 1], [1] * 13])
def test_packed_documents_equal_separate_runs_in_values_and_gradients(lengths):
    m, parts = model(), rows(*lengths)
    ids = torch.cat((*parts, rows(2)[0]))[None]
    counted = [i for i, n in enumerate(lengths, start=1) for _ in range(n)]
    segments = torch.tensor([[*counted, 0, 0]])
    packed = m(ids, segments=segments)[0, :-2]
    packed.sin().sum().backward()
    grads = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    alone = torch.cat([m(part[None])[0] for part in parts])
    torch.testing.assert_close(packed, alone, **CLOSE)
    alone.sin().sum().backward()
    for mine, p in zip(grads, m.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, **CLOSE)


@torch.no_grad()
def test_a_flat_pass_over_several_sequences_equals_each_alone():
    """Two sequences with memories of their own, one read on by three tokens and one by one."""
    m = model()
    mixer, x = m.mixers()[0], torch.randn(1, 4, 16, dtype=torch.float64)
    caches = [Cache(m, rows=1, capacity=8) for _ in range(2)]
    for cache, part in zip(caches, rows(5, 2), strict=True):
        m(part[None], cache=cache)
    kept = [{k: v.clone() for k, v in cache.slots[0].items()} for cache in caches]

    def context(cache):
        return Context({}, torch.zeros(1, 1).long(), cache=cache)

    at = [torch.tensor([[0, 2, 3]]), torch.tensor([[1]])]
    flat = context(caches[0])
    flat.groups = [Group(a, context(cache)) for a, cache in zip(at, caches, strict=True)]
    together = mixer(x, flat)
    for a, cache, old in zip(at, caches, kept, strict=True):
        after = {k: v.clone() for k, v in cache.slots[0].items()}
        cache.put(0, **old)
        torch.testing.assert_close(together[:, a[0]], mixer(x[:, a[0]], context(cache)), **CLOSE)
        torch.testing.assert_close(after, cache.slots[0], **CLOSE)


def test_every_parameter_gets_a_gradient():
    m = model(replace(MIXER, bias=True))
    m(torch.stack(rows(9, 9))).sin().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters())


def test_the_tensors_are_those_of_the_description():
    for op in (MIXER, replace(MIXER, bias=True, conv_bias=False, groups=3, conv=2)):
        plan = description(op)
        made = build.decoder(plan)
        assert {n: tuple(t.shape) for n, t in made.state_dict().items()} == {
            w.name: w.shape for w in tensors(plan)
        }
        assert sum(p.numel() for p in made.parameters()) == count(plan).trunk


def test_step_sizes_stay_within_their_limits():
    ids = torch.stack(rows(12))
    free, wide = model()(ids), model(replace(MIXER, dt_limit=(1e-9, 1e9)))(ids)
    torch.testing.assert_close(free, wide, **CLOSE)
    assert (model(replace(MIXER, dt_limit=(2.0, None)))(ids) - free).abs().max() > 1e-2
    assert (model(replace(MIXER, dt_limit=(0.0, 0.5)))(ids) - free).abs().max() > 1e-2


def test_first_values_follow_the_published_rules():
    op = Mamba2(heads=400, head_dim=2, state=2, conv=4, dt_init=(1e-3, 1e-1, 2e-3))
    m = initialise(build.decoder(description(op)), seed=0)
    mixer = m.mixers()[0]
    torch.testing.assert_close(mixer.a_log.exp(), torch.arange(1.0, 401.0))
    assert bool((mixer.d == 1).all() and (mixer.norm.weight == 1).all())
    dt = torch.nn.functional.softplus(mixer.dt_bias.double())
    assert 2e-3 * 0.999 < dt.min() < 2e-3 * 1.001 and 0.09 < dt.max() < 0.1001
    # log-uniform: half of the steps below the geometric mean of the limits; 400 draws, 3 sigma
    assert abs((dt < 1e-2).double().mean() - 0.5) < 0.075
    for taps in (mixer.conv.weight, mixer.conv.bias):
        assert 0.48 < taps.abs().max() < 0.5 and abs(taps.mean()) < 0.03
    again = initialise(build.decoder(description(op)), seed=0).mixers()[0]
    assert torch.equal(again.dt_bias, mixer.dt_bias)
    assert not torch.equal(m.mixers()[3].dt_bias, mixer.dt_bias)


def test_the_outputs_of_residual_branches_start_smaller():
    plain = initialise(build.decoder(description()), seed=0)
    scaled = replace(description(), init=Init(std=0.3, residual=0.5))
    small = initialise(build.decoder(scaled), seed=0)
    theirs = dict(plain.named_parameters())
    for name, tensor in small.named_parameters():
        ends = name.endswith(("op.o.weight", "op.down.weight"))
        assert torch.allclose(tensor, theirs[name] * (0.5 if ends else 1.0)), name


@torch.no_grad()
def test_a_narrow_model_keeps_its_state_in_float32():
    m, wide = model(dtype=torch.bfloat16), model(dtype=torch.float32)
    for narrow, p in zip(m.parameters(), wide.parameters(), strict=True):
        p.copy_(narrow)
    ids = torch.stack(rows(20))
    cache = Cache(m, rows=1, capacity=20)
    logits = torch.cat([m(part, cache=cache) for part in ids.split([9, *[1] * 11], 1)], 1)
    assert cache.slots[0]["ssm"].dtype == torch.float32
    assert cache.slots[0]["tail"].dtype == torch.bfloat16
    for ours in (logits, m(ids)):
        similarity = torch.cosine_similarity(ours.flatten(), wide(ids).flatten(), dim=0)
        assert similarity > 0.999  # measured 0.9999


def test_what_is_remembered_does_not_grow():
    m = model()
    small, large = (Cache(m, rows=2, capacity=n) for n in (5, 60))
    for name, shape in (("ssm", (2, 6, 4, 5)), ("tail", (2, 3, 44))):
        assert small.slots[0][name].shape == large.slots[0][name].shape == shape
    assert small.slots[1] == {}
    assert small.slots[0]["ssm"].dtype == torch.float64  # of a float64 model


def test_a_narrow_gated_norm_is_cast_before_its_weight_and_a_block_norm_after():
    """They differ in the last bit: most of 4,000 values agree either way, and some do not."""
    mixer = model(dtype=torch.bfloat16).mixers()[0]
    draw = torch.Generator().manual_seed(1)
    y, z = (torch.randn(1, 170, 24, generator=draw) for _ in range(2))
    z = z.bfloat16()
    v = (y * torch.nn.functional.silu(z.float())).unflatten(-1, (2, 12))
    v = (v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(2)
    early, late = mixer.norm.weight * v.bfloat16(), (mixer.norm.weight.float() * v).bfloat16()
    found = mixer._gated(y, z)
    assert (found != early).double().mean() < 1e-3 < 0.05 < (found != late).double().mean()

    x, norm = z, model(dtype=torch.bfloat16).layers[0].mixer.norm
    v = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    weight = torch.rand(24, generator=draw).bfloat16()
    norm.weight = torch.nn.Parameter(weight)
    early, late = weight * v.bfloat16(), (weight.float() * v).bfloat16()
    found = norm(x)
    assert (found != late).double().mean() < 1e-3 < 0.05 < (found != early).double().mean()
