"""The twins of running experts against the loop, in value and gradient."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from etude.ops import experts, select

GROUP = partial(experts.by_group, product=experts.slices)


def case(*, n=9, e=6, a=2, f=5, d=8, gated=True):
    x, chosen = torch.randn(n, d), torch.stack([torch.randperm(e)[:a] for _ in range(n)])
    weights = torch.rand(n, a)
    gate = torch.randn(e, f, d) if gated else None
    return x, chosen, weights, experts.Stack(gate, torch.randn(e, f, d), torch.randn(e, d, f))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_the_twins_equal_the_loop(n, gated):
    x, chosen, weights, stack = case(n=n, gated=gated)
    slow = experts.by_loop(x, chosen, weights, stack, F.silu)
    # measured 8e-6 on values near 20; a lost weight or a wrong expert moves 1 or more
    torch.testing.assert_close(GROUP(x, chosen, weights, stack, F.silu), slow, atol=1e-4, rtol=1e-5)
    few = experts.by_index(x, chosen, weights, experts.pack(stack), F.silu, gated=gated)
    for fast in (few, experts.by_slice(x, chosen, weights, stack, F.silu)):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_gradients_of_the_sorted_twin_equal_the_loop(gated):
    x, chosen, weights, stack = case(gated=gated)
    leaves = [t.requires_grad_() for t in (x, weights, *stack) if t is not None]
    probe = torch.randn_like(x)
    slow = torch.autograd.grad(experts.by_loop(x, chosen, weights, stack, F.silu), leaves, probe)
    fast = torch.autograd.grad(GROUP(x, chosen, weights, stack, F.silu), leaves, probe)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_an_expert_that_nobody_chose_gets_a_zero_gradient():
    x, _, weights, stack = case()
    chosen = torch.tensor([[0, 5]] * len(x))
    up = stack.up.requires_grad_()
    GROUP(x, chosen, weights, stack, F.silu).sum().backward()
    assert up.grad[1:5].abs().max() == 0
    assert up.grad[0].abs().max() > 0


def test_slices_passes_a_numerical_check():
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    stacks = [torch.randn(3, n, 3, dtype=torch.float64, requires_grad=True) for n in (2, 4)]
    ends = torch.tensor([2, 2, 5])
    assert torch.autograd.gradcheck(lambda a, *b: experts.slices(a, ends, *b), (rows, *stacks))


def test_bfloat16_runs_in_its_own_dtype():
    x, chosen, weights, stack = case()
    narrow = experts.Stack(*(t.bfloat16() for t in stack))
    out = GROUP(x.bfloat16(), chosen, weights, narrow, F.silu)
    assert out.dtype == torch.bfloat16
    slow = experts.by_loop(x, chosen, weights, stack, F.silu)
    assert F.cosine_similarity(out.float().flatten(), slow.flatten(), dim=0) > 0.999


def test_few_tokens_read_laid_out_matrices_and_others_the_parameters():
    *_, stack = case()
    few, many = torch.randn(2, 8), torch.randn(64, 8)
    assert select.experts_twin(few, 2, stack, serving=True) == "index"
    assert select.experts_twin(few, 2, stack, serving=False) == "group"
    assert select.experts_twin(few, 2, stack, serving=True, int8=True) == "slice"
    assert select.experts_twin(many, 2, stack, serving=True) == "slice"
    assert select.experts_twin(many, 2, stack, serving=False) == "group"
    assert select.experts_product(many) is experts.slices


@pytest.mark.gpu
def test_the_grouped_kernel_equals_slices():
    x, chosen, weights, stack = case(n=64, f=32, d=64)
    cuda = experts.Stack(*(t.cuda().bfloat16() for t in stack))
    args = (x.cuda().bfloat16(), chosen.cuda(), weights.cuda(), cuda, F.silu)
    fast = experts.by_group(*args, product=experts.grouped)
    slow = experts.by_group(*args, product=experts.slices)
    torch.testing.assert_close(fast, slow, atol=1.0, rtol=2e-2)
