"""From a description to modules: names, shapes, devices, first values."""

import pytest
import torch

from etude import arch
from etude.models import glm45
from etude.nn import build
from etude.nn.init import initialise


@pytest.mark.parametrize("size", ["tiny", "mini", "air"])
def test_the_modules_hold_exactly_the_tensors_of_the_description(size):
    plan = glm45.arch(glm45.SIZES[size])
    with torch.device("meta"):
        model = build.decoder(plan)
    listed = {w.name: w.shape for w in arch.tensors(plan)}
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == listed
    trained = {w.name for w in arch.tensors(plan) if w.trained}
    assert {name for name, _ in model.named_parameters()} == trained


def test_a_tied_head_is_the_embedding():
    plan = glm45.arch(glm45.SIZES["mini"] | {"tie_word_embeddings": True})
    model = build.decoder(plan)
    assert model.head_weight is model.embed.weight
    assert set(model.state_dict()) == {w.name for w in arch.tensors(plan)}


def test_building_draws_no_random_number():
    before = torch.get_rng_state()
    initialise(build.decoder(glm45.arch(glm45.SIZES["mini"])), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_values_depend_on_the_seed_alone():
    plan = glm45.arch(glm45.SIZES["mini"])
    a = initialise(build.decoder(plan), seed=1).state_dict()
    torch.manual_seed(99)
    b = initialise(build.decoder(plan), seed=1).state_dict()
    c = initialise(build.decoder(plan), seed=2).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])
    assert not torch.equal(a["layers.1.mixer.op.k.weight"], a["layers.2.mixer.op.k.weight"])


def test_first_values_are_normal_matrices_zero_biases_and_unit_norms():
    model = initialise(build.decoder(glm45.arch(glm45.SIZES["mini"])), seed=0)
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            assert tensor.abs().max() == 0
        elif "norm" in name:
            assert tensor.min() == tensor.max() == 1
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_router_bias_stays_float32():
    """At bfloat16 a bias near 7 has 8 levels, and almost every token changes experts."""
    model = initialise(build.decoder(glm45.arch(glm45.SIZES["mini"])), seed=0)
    bias = dict(model.routers())["layers.1.ffn.op.router"].bias
    bias.copy_(torch.linspace(7, 7.1, 8))
    kept = bias.clone()
    for moved in (model.to(torch.bfloat16), model.half(), model.float(), model.bfloat16()):
        after = dict(moved.routers())["layers.1.ffn.op.router"].bias
        assert after.dtype == torch.float32
        assert torch.equal(after, kept)
    assert model.head.weight.dtype == torch.bfloat16
    assert model.state_dict()["layers.1.ffn.op.router.bias"].dtype == torch.float32


def test_a_meta_model_can_be_given_memory():
    with torch.device("meta"):
        model = build.decoder(glm45.arch(glm45.SIZES["mini"]))
    model = initialise(model.to_empty(device="cpu"), seed=4)
    direct = initialise(build.decoder(glm45.arch(glm45.SIZES["mini"])), seed=4)
    for a, b in zip(model.state_dict().values(), direct.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_selection_bias_is_float32_under_any_default_dtype():
    """At bfloat16 a bias near 7 has 8 levels, and most tokens would go to other experts."""
    router = arch.Router(score="sigmoid", bias=True)
    sparse = arch.MoE(expert=arch.MLP(hidden=4), experts=4, active=2, router=router)
    model = arch.Decoder(dim=8, vocab=16, layers=((arch.Residual(sparse),),))
    torch.set_default_dtype(torch.bfloat16)
    try:
        made = build.decoder(model)
    finally:
        torch.set_default_dtype(torch.float32)
    kinds = {name: tensor.dtype for name, tensor in made.state_dict().items()}
    assert kinds.pop("layers.0.ffn.op.router.bias") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
