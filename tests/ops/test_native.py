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


@pytest.fixture
def crowd():
    """Threads that share the outputs of one matrix unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(16)
    yield
    torch.set_num_threads(before)


def test_more_threads_than_share_the_outputs_evenly_change_nothing(built, crowd):
    """Of 100 outputs 14 threads take 7 or less; the last two once took -5 and -12."""
    x, up, down = torch.randn(1, 16), torch.randn(100, 16), torch.randn(16, 100)
    slow = F.linear(F.relu(F.linear(x, up)).square(), down)
    fast = built.experts(x, None, None, [up, down], [], False)
    assert (fast - slow).abs().max() <= 1e-5 * slow.abs().max()


def test_no_rows_and_no_experts_give_no_rows_and_zeros(built):
    stack = [torch.randn(3, 8, 16), torch.randn(3, 16, 8)]
    for rows, active in ((0, 2), (2, 0)):
        chosen = torch.empty(rows, active, dtype=torch.long)
        y = built.experts(torch.ones(rows, 16), chosen, chosen.float(), stack, [], True)
        assert torch.equal(y, torch.zeros(rows, 16))
    alone = built.experts(torch.ones(0, 16), None, None, [w[0] for w in stack], [], True)
    assert alone.shape == (0, 16)
    assert built.linear(torch.ones(0, 16), stack[0][0], None, None).shape == (0, 8)


def test_weights_that_are_not_whole_in_memory_count_as_they_read(built):
    x, turned = torch.randn(2, 16), torch.randn(16, 8).t()
    CLOSE(built.linear(x, turned, None, None), F.linear(x, turned))
    values, scale = quant.pack_int8(turned)
    assert not values.is_contiguous()
    CLOSE(built.linear(x, values, scale, None), quant.linear_int8(x, values, scale))
    stack = [torch.randn(3, 16, 8).mT, torch.randn(3, 8, 16).mT]
    chosen, weights = torch.tensor([[0, 2], [1, 0]]), torch.rand(2, 2)
    slow = experts.by_loop(x, chosen, weights, experts.Stack(None, *stack), F.silu)
    CLOSE(built.experts(x, chosen, weights, stack, [], True), slow)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("linear", (torch.ones(2, 8), torch.ones(4, 16), None, None), "by"),
        ("linear", (torch.ones(2, 0), torch.ones(4, 0), None, None), "a weight of shape"),
        ("linear", (torch.ones(2, 8), torch.ones(4, 8).char(), None, None), "bytes alone"),
        ("linear", (torch.ones(2, 8), torch.ones(4, 8), None, torch.ones(3)), "3 numbers for 4"),
        ("linear", (torch.ones(2, 8), torch.ones(4, 8).double(), None, None), "scalar type"),
        ("experts", (torch.ones(2, 8), None, None, [torch.ones(4, 8)] * 2, [], True), "by"),
        ("experts", (torch.ones(2, 8), None, None, [torch.ones(4, 8)], [], True), "1 matrices"),
        ("route", (torch.ones(2, 8), torch.ones(3, 8), None, True, 4, True, 1.0), "4 of 3 experts"),
        ("rms_norm", (torch.ones(2, 8), torch.ones(3), 1e-5), "by"),
        ("rotate", (torch.ones(1, 3, 2, 8), *[torch.ones(1, 2, 1, 8)] * 2, 8, True), "by"),
    ],
)
def test_what_does_not_fit_is_refused_before_memory_is_read(built, name, arguments, told):
    with pytest.raises(RuntimeError, match=f"{told}"):
        getattr(built, name)(*arguments)


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


def test_a_score_that_is_no_number_is_the_first_choice_as_in_torch(built):
    """Else a broken row of the router would go unseen."""
    x, weight = torch.randn(2, 8), torch.randn(5, 8)
    weight[3] = torch.nan
    _, chosen, weights = built.route(x, weight, None, True, 2, True, 1.0)
    slow = route.choose(route.score(x, weight, kind="sigmoid"), None, active=2)
    assert torch.equal(chosen.sort().values, slow.sort().values) and (chosen == 3).any(-1).all()
    assert weights.isnan().all()


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
