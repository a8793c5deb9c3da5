"""Weights of one byte: what they cost, what they mean, and what is refused."""

import copy

import pytest
import torch

from etude.engine.generate import generate
from etude.errors import EtudeError
from etude.models.checkpoint import create, save
from etude.nn.cache import Cache
from etude.nn.int8 import Int8Linear, int8, int8_
from etude.nn.linear import Linear
from etude.nn.moe import Experts
from etude.ops import native
from etude.ops.int8 import Int8Weight
from etude.ops.quant import pack_int8, unpack_int8

FAMILIES = ["gpt3", "glm45", "minimax_m1", "kimi_k2", "nemotron3"]

pytestmark = pytest.mark.timeout(400)  # building takes 20 s on an idle core


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch):
    """Start without kernels; a test that wants them asks for `kernels` too."""
    monkeypatch.setattr(native, "_built", [None])


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(native, "_built", [])
    if not native.build():
        pytest.skip("no C++ compiler")


def meant(model):
    """The same model in float32 with weights that int8 holds exactly."""
    model = copy.deepcopy(model)
    if model.head is None:
        model.head = Linear(*reversed(model.embed.weight.shape), bias=False)
        model.head.weight.data.copy_(model.embed.weight.data)
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.data = unpack_int8(*pack_int8(module.weight))
        elif isinstance(module, Experts):
            for weight in module.parameters():
                weight.data = unpack_int8(*pack_int8(weight))
    return model


@torch.inference_mode()
def stepwise(model, ids):
    cache = Cache(model, rows=ids.shape[0], capacity=ids.shape[1])
    parts = [ids[:, :5], *ids[:, 5:].split(1, dim=1)]
    return torch.cat([model(part, cache=cache) for part in parts], 1)


def ids_of(model):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.arch.vocab, (2, 9), generator=generator)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rounded_model_computes_what_its_rounded_weights_mean(name):
    model = create(name, "tiny", seed=0)
    ids = ids_of(model)
    # the same products in float32: measured 2e-6 on logits near 1; a lost scale moves 1
    torch.testing.assert_close(
        stepwise(int8(model), ids), stepwise(meant(model), ids), atol=5e-5, rtol=0
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kernels_change_nothing_but_rounding(name, kernels):
    model = create(name, "tiny", seed=0)
    ids = ids_of(model)
    built = native._built.copy()
    native._built[:] = [None]
    slow = stepwise(meant(model), ids)
    native._built[:] = built
    with native.lent():
        torch.testing.assert_close(stepwise(int8(model), ids), slow, atol=5e-5, rtol=0)
        torch.testing.assert_close(stepwise(meant(model), ids), slow, atol=5e-5, rtol=0)
    assert torch.equal(stepwise(meant(model), ids), slow)  # nobody else's numbers change


def test_rounding_costs_less_than_two_percent_of_the_logits_where_no_expert_is_near_a_tie():
    """Of a dense model; with experts a near tie of the router may go the other way."""
    model = create("gpt3", "tiny", seed=0)
    ids = ids_of(model)
    whole, rounded = stepwise(model, ids), stepwise(int8(model), ids)
    error = (rounded - whole).std() / whole.std()
    assert 1e-4 < error < 0.03  # measured: see docs/engine.md; 4 bits would give 0.1
    assert (rounded.argmax(-1) == whole.argmax(-1)).float().mean() > 0.9


def test_a_rounded_model_holds_a_quarter_and_keeps_router_norms_and_embedding():
    model = create("glm45", "tiny", seed=0)
    held = sum(p.numel() for m in model.modules() for p in _own(m) if isinstance(m, Linear))
    held += sum(p.numel() for m in model.modules() for p in _own(m) if isinstance(m, Experts))
    kept = {name: p.clone() for name, p in model.named_parameters()}
    rounded = int8(model)
    bytes_ = sum(
        b.numel() * b.element_size() for m in rounded.modules() for b in m.buffers(recurse=False)
        if isinstance(m, Int8Linear | Experts)
    )  # fmt: skip
    assert held < bytes_ < 1.3 * held  # a byte each, and the scales
    for name, weight in rounded.named_parameters():
        assert weight.dtype == torch.float32 and torch.equal(weight, kept[name])
        assert "norm" in name or "router" in name or "embed" in name or "bias" in name
    assert not any(isinstance(m, Linear) for m in rounded.modules())
    assert any(isinstance(m, Linear) for m in model.modules())  # the original is as it was


def _own(module):
    return module.parameters(recurse=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rounded_model_may_still_be_moved_to_another_dtype(name, kernels):
    """Every product is then one of that dtype, in experts, latents and wide heads too."""
    model = int8(create(name, "tiny", seed=0))
    ids = ids_of(model)
    whole = stepwise(model, ids)
    for dtype, close in ((torch.float64, 1e-4), (torch.bfloat16, 0.2)):
        moved = stepwise(copy.deepcopy(model).to(dtype), ids)
        # bfloat16 has 8 bits, and an expert near a tie may be another: measured 0.09 at most
        torch.testing.assert_close(moved.to(whole.dtype), whole, atol=close, rtol=0)


def test_joined_and_taken_rows_stay_bytes_and_all_else_is_float32():
    weight = Int8Linear(torch.randn(6, 4)).weight
    joined = torch.cat([weight, weight[torch.tensor([2, 0])]])
    assert isinstance(joined, Int8Weight) and joined.shape == (8, 4)
    plain = unpack_int8(weight.int8, weight.scale)
    torch.testing.assert_close(joined + 0, torch.cat([plain, plain[[2, 0]]]))
    assert type(weight.t() + 0) is torch.Tensor
    assert type(torch.cat([weight, torch.zeros(1, 4)])) is torch.Tensor


def test_generate_rounds_for_a_call_and_leaves_the_model_alone():
    model = create("glm45", "tiny", seed=0)
    before = copy.deepcopy(model.state_dict())
    [once] = generate(model, [[1, 2, 3]], max_tokens=6, weights="int8")
    [always] = generate(int8(model), [[1, 2, 3]], max_tokens=6)
    assert once.tokens == always.tokens
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda model: int8_(int8(model)), "int8 already"),
        (lambda model: int8_(model.double()), "float32 ones"),
        (lambda model: generate(model, [[1]], weights="int4"), "stored or int8"),
        (lambda model: save(int8(model), "nowhere"), "save: int8 weights"),
    ],
)
def test_what_cannot_be_rounded_is_told_in_one_line(make, told):
    with pytest.raises(EtudeError, match=told):
        make(create("glm45", "tiny", seed=0))
