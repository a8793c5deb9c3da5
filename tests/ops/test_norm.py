"""Root-mean-square norm: the twin with its own gradient against the formula."""

import pytest
import torch

from etude.ops import norm
from etude.ops.norm import rms_norm, rms_norm_reference


@pytest.mark.parametrize("block", [norm.BLOCK, 100, 1])
@pytest.mark.parametrize("weights", [(16,), (1, 3, 16)])
def test_value_and_gradient_equal_the_formula(weights, block, monkeypatch):
    monkeypatch.setattr(norm, "BLOCK", block)
    x = torch.randn(2, 5, 3, 16, requires_grad=True)
    w = torch.randn(weights, requires_grad=True)
    fast, slow = rms_norm(x, w, 1e-2), rms_norm_reference(x, w, 1e-2)
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=0)
    probe = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad(fast, (x, w), probe),
        torch.autograd.grad(slow, (x, w), probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_the_gradient_passes_a_numerical_check():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, w))


def test_without_gradient_the_value_is_the_same():
    x, w = torch.randn(4, 16), torch.randn(16)
    with torch.no_grad():
        alone = rms_norm(x, w, 1e-5)
    assert torch.equal(alone, rms_norm(x.requires_grad_(), w, 1e-5))


def test_a_row_of_zeros_has_finite_value_and_gradient():
    x = torch.zeros(1, 8, requires_grad=True)
    y = rms_norm(x, torch.ones(8), 1e-5)
    y.sum().backward()
    assert y.abs().max() == 0
    assert x.grad.isfinite().all()


def test_the_cast_comes_before_the_weight():
    """Multiplying in float32 first would give other last bits."""
    x = torch.randn(64, 32).bfloat16()
    w = (1 + torch.rand(32) * 0.3).bfloat16()
    ours = rms_norm(x.requires_grad_(), w, 1e-5)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, rms_norm_reference(x, w, 1e-5), atol=0, rtol=2**-7)
    ours.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
