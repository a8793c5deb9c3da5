"""The kernels in C++ against their twins in plain torch."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from etude.arch import Rope
from etude.ops import experts, native, norm, quant, rope, route, select

CLOSE = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-5)

pytestmark = pytest.mark.timeout(400)  # building takes 20 s on an idle core


@pytest.fixture(scope="module")
def built():
    """The kernels, for this file alone: whatever else runs in this process does without."""
    before = list(native._built)
    if not native.build():
        pytest.skip("no C++ compiler")
    yield native.built()
    native._built[:] = before


def test_rounding_moves_no_value_by_more_than_half_a_scale_and_keeps_zero_rows():
    weight = torch.randn(2, 5, 7) * torch.logspace(-6, 6, 5).unsqueeze(-1)
    weight[1, 3] = 0
    values, scale = quant.pack_int8(weight)
    moved = (quant.unpack_int8(values, scale) - weight).abs()
    assert values.dtype == torch.int8 and (values.abs().amax(-1)[weight.any(-1)] == 127).all()
    assert (moved <= 0.5001 * scale.unsqueeze(-1)).all()
    assert (moved[1, 3] == 0).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 9, 16, 37])
@pytest.mark.parametrize(("outs", "inner"), [(13, 37), (64, 48)])
def test_a_product_of_any_size_equals_torch(built, rows, outs, inner):
    x, weight, bias = torch.randn(rows, inner), torch.randn(outs, inner), torch.randn(outs)
    values, scale = quant.pack_int8(weight)
    # measured 1e-5 on values near 20; a row, output or tail that is left out moves 0.1 or more
    CLOSE(built.linear(x, weight, None, bias), F.linear(x, weight, bias))
    CLOSE(built.linear(x, values, scale, None), quant.linear_int8(x, values, scale))
    wide = x.expand(2, -1, -1)  # more dimensions, and not contiguous
    CLOSE(built.linear(wide, values, scale, bias), quant.linear_int8(wide, values, scale, bias))


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("silu", "act"), [(True, F.silu), (False, lambda x: F.relu(x).square())])
def test_experts_equal_the_loop_in_float32_and_int8(built, rows, gated, silu, act):
    e, a, f, d = 6, 3, 20, 33
    x, weights = torch.randn(rows, d), torch.rand(rows, a)
    chosen = torch.stack([torch.randperm(e)[:a] for _ in range(rows)])
    gate = torch.randn(e, f, d) if gated else None
    stack = [w for w in (gate, torch.randn(e, f, d), torch.randn(e, d, f)) if w is not None]
    packs = [quant.pack_int8(w) for w in stack]
    rounded = [quant.unpack_int8(*pack) for pack in packs]
    for held, scales, meant in (
        (stack, [], stack),
        ([v for v, _ in packs], [s for _, s in packs], rounded),
    ):
        slow = experts.by_loop(x, chosen, weights, experts.Stack(*[None, *meant][-3:]), act)
        fast = built.experts(x, chosen, weights, held, scales, silu)
        # relative to the largest, which relu2 makes 1e4: measured 1e-6; a lost expert moves 0.1
        assert (fast - slow).abs().max() <= 1e-5 * slow.abs().max()


def test_an_expert_that_does_not_exist_is_refused(built):
    x, stack = torch.randn(1, 8), [torch.randn(2, 4, 8), torch.randn(2, 8, 4)]
    with pytest.raises(RuntimeError, match="experts: number 2 of 2"):
        built.experts(x, torch.tensor([[2]]), torch.ones(1, 1), stack, [], True)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bias", [None, torch.linspace(-0.5, 0.5, 9)])
def test_the_router_picks_and_weighs_as_torch_does(built, kind, normalize, bias):
    x, weight = torch.randn(20, 31), torch.randn(9, 31)
    scores, chosen, weights = built.route(x, weight, bias, kind == "sigmoid", 3, normalize, 2.5)
    slow = route.score(x, weight, kind=kind)
    CLOSE(scores, slow)
    assert (chosen.sort().values == route.choose(slow, bias, active=3).sort().values).all()
    CLOSE(weights, route.weigh(slow, chosen, normalize=normalize, scale=2.5))


@pytest.mark.parametrize("shape", [(1, 5, 33), (2, 3, 4, 16)])
def test_the_norm_equals_its_reference_also_with_a_row_per_head(built, shape):
    x = torch.randn(*shape)
    for weight in (torch.randn(shape[-1]), torch.randn(1, *shape[-2:])):
        CLOSE(built.rms_norm(x, weight, 1e-5), norm.rms_norm_reference(x, weight, 1e-5))


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_rotation_equals_its_reference(built, pairs, rows):
    x = torch.randn(2, 3, 5, 16)[:, :, 1:]  # a part of the heads, as attention takes it
    pos = torch.randint(50, (rows, 3))
    cos, sin = rope.tables(pos, Rope(theta=100.0, fraction=0.5, pairs=pairs), 16)
    slow = rope.rotate_reference(x, pos.expand(2, -1), 8, 100.0, pairs=pairs)
    with torch.inference_mode(), native.lent():
        CLOSE(rope.rotate(x, cos, sin, 8, pairs=pairs), slow)  # the kernel, as it is chosen


def test_they_are_taken_where_they_can_be_and_nowhere_else(built):
    x = torch.randn(2, 4)
    with native.lent():
        assert select.kernels(x) is None  # a gradient could be asked for
    with torch.no_grad():
        assert select.kernels(x) is None and select.kernels(x, always=True) is built
    with torch.no_grad(), native.lent():
        assert select.kernels(x) is built
        assert select.kernels(x.double()) is None and select.kernels(x.to("meta")) is None


def test_without_a_compiler_one_line_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(native, "_built", [])
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert not native.build() and not native.build() and native.built() is None
    assert capsys.readouterr().err.count("\n") == 1
