"""Chunked log-probabilities: value, entropy and gradients of the full logits."""

import pytest
import torch

from etude.ops import logp as module
from etude.ops.logp import label_logp, label_logp_reference

CASES = [(1.0, False), (1.0, True), (0.7, True), (1.3, False)]


def case():
    hidden = torch.randn(11, 6, requires_grad=True)
    weight = torch.randn(9, 6, requires_grad=True)
    labels = torch.tensor([0, 8, -100, 3, 3, -100, 1, 2, 4, 7, 5])
    return hidden, weight, labels


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("chunk", [1, 4, 11, None])
@pytest.mark.parametrize(("temperature", "entropy"), CASES)
def test_chunks_equal_the_full_logits_in_value_and_gradient(
    temperature, entropy, chunk, kept, monkeypatch
):
    """Whether the logits are kept for the backward pass or made again."""
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    hidden, weight, labels = case()
    how = {"temperature": temperature, "entropy": entropy}
    fast = label_logp(hidden, weight, labels, chunk=chunk, **how)
    slow = label_logp_reference(hidden, weight, labels, **how)
    probes = [torch.randn(11) for _ in range(2)]

    def gradients(result):
        total = sum((p * r).sum() for p, r in zip(probes, result, strict=True) if r is not None)
        return torch.autograd.grad(total, (hidden, weight))

    torch.testing.assert_close(fast[0], slow[0], atol=2e-6, rtol=0)
    if entropy:
        torch.testing.assert_close(fast[1], slow[1], atol=2e-6, rtol=0)
    else:
        assert fast[1] is None
    for a, b in zip(gradients(fast), gradients(slow), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_logits_up_to_the_limit_are_kept_and_give_one_backward_pass(monkeypatch):
    """They become their gradient in place, so that a second pass is refused, not wrong."""
    hidden, weight, labels = case()
    for kept in (4 * 11 * 9, 4 * 11 * 9 - 1):
        monkeypatch.setattr(module, "KEPT_BYTES", kept)
        total = label_logp(hidden, weight, labels)[0].sum()
        total.backward(retain_graph=True)
        if kept == 4 * 11 * 9:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                total.backward()
        else:
            total.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_to_come_only_a_chunk_of_logits_is_made(mode, monkeypatch):
    """A model that is only evaluated still has parameters that ask for gradients."""
    hidden, weight, labels = case()
    made, buffer = [], module._buffer
    monkeypatch.setattr(module, "_buffer", lambda *args: made.append(buffer(*args)) or made[-1])
    with mode():
        label_logp(hidden.detach(), weight, labels, chunk=4)
    assert [len(logits) for logits in made] == [4, 4]
    label_logp(hidden.detach(), weight, labels, chunk=4)
    assert [len(logits) for logits in made[2:]] == [11, 4]  # kept for the gradient of the head


def test_no_labels_have_no_log_probabilities_and_no_gradient():
    hidden, weight, labels = case()
    logp, entropy = label_logp(hidden[:0], weight, labels[:0], entropy=True)
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()
    assert (weight.grad == 0).all()


def test_an_ignored_position_gives_exactly_nothing():
    hidden, weight, labels = case()
    logp, entropy = label_logp(hidden, weight, labels, entropy=True)
    (logp.sum() + entropy.sum()).backward()
    ignored = labels == -100
    assert logp[ignored].tolist() == entropy[ignored].tolist() == [0, 0]
    assert hidden.grad[ignored].abs().max() == 0
    assert (hidden.grad[~ignored].abs().amax(-1) > 0).all()


def test_the_worked_example_of_the_cross_entropy():
    """Rows of logits with labels 1, 2, ignored, 0, ignored: losses 2.340753, 1.743668, 0.743668."""
    rows = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [1, 0, 0, 0], [0, 2, 0, 0]])
    labels = torch.tensor([1, 2, -100, 0, -100])
    rows.requires_grad_()
    logp, _ = label_logp(rows, torch.eye(4), labels)
    assert (-logp).tolist() == pytest.approx([2.340753, 1.743668, 0, 0.743668, 0], abs=1e-6)
    (-logp.sum() / 3).backward()
    expected = [0.237078, -0.301248, 0.032085, 0.032085]
    assert rows.grad[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_uniform_logits_have_the_entropy_of_the_vocabulary():
    logp, entropy = label_logp(
        torch.zeros(2, 3), torch.randn(16, 3), torch.tensor([0, 5]), entropy=True
    )
    assert entropy.tolist() == pytest.approx([2.772589, 2.772589], abs=1e-6)
    assert logp.tolist() == pytest.approx([-2.772589, -2.772589], abs=1e-6)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, labels = case()
    label_logp(hidden, weight.detach(), labels)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("entropy", [False, True])
def test_bfloat16_operands_are_multiplied_in_float32(entropy):
    """Equal to the same numbers given as float32: nothing is rounded but the gradients, at the end.

    A product rounded to bfloat16 moves these log-probabilities by 1e-2.
    """
    hidden, weight, labels = case()
    narrow = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    wide = [tensor.detach().float().requires_grad_() for tensor in narrow]
    low, high = (label_logp(*pair, labels, entropy=entropy, chunk=4) for pair in (narrow, wide))
    slow = label_logp_reference(*narrow, labels, entropy=entropy)
    for mine, exact, other in zip(low, high, slow, strict=True):
        if exact is not None:
            assert torch.equal(mine, exact)
            torch.testing.assert_close(mine, other, atol=2e-6, rtol=0)
    for result in (low, high):
        sum(part.sum() for part in result if part is not None).backward()
    for mine, exact in zip(narrow, wide, strict=True):
        assert torch.equal(mine.grad, exact.grad.bfloat16())


def test_float64_is_multiplied_as_it_is():
    """The large parts of these sums cancel; in float32 they would take the small one with them."""
    hidden = torch.tensor([[2.0**30, 1.0, -(2.0**30)]], dtype=torch.float64, requires_grad=True)
    small = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    weight = torch.stack([torch.ones(3).double(), small, torch.ones(3).double()], dim=1)
    logp, _ = label_logp(hidden, weight, torch.tensor([2]))
    assert logp.item() == pytest.approx(small.log_softmax(0)[2].item(), abs=1e-6)
    logp.sum().backward()
    assert hidden.grad.dtype == torch.float64


def test_bfloat16_gives_float32_results():
    hidden, weight, labels = case()
    narrow, head = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16()
    logp, _ = label_logp(narrow, head, labels)
    assert logp.dtype == torch.float32
    logp.sum().backward()
    assert narrow.grad.dtype == torch.bfloat16
