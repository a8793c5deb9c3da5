"""Two models over a whole vocabulary, chunk by chunk: the same values and gradients."""

import pytest
import torch

from etude.objectives.distill import jsd
from etude.ops.compare import log_probs, over_chunks


def inputs(kind=torch.float64):
    torch.manual_seed(0)
    shapes = ((13, 6), (40, 6), (13, 9), (40, 9))
    return [torch.randn(*shape, dtype=kind) for shape in shapes]


@pytest.mark.parametrize("chunk", [1, 5, 13, None])
def test_chunks_change_neither_values_nor_gradients(chunk):
    hidden, head, theirs, other = inputs()
    teacher = log_probs(theirs, other, temperature=1.5)
    whole = [x.clone().requires_grad_() for x in (hidden, head)]
    expected = jsd(teacher, log_probs(*whole, temperature=1.5), beta=0.3)
    expected.sum().backward()
    own = [x.clone().requires_grad_() for x in (hidden, head)]

    def compare(logp, rows):
        return {"loss": jsd(log_probs(theirs[rows], other, temperature=1.5), logp, beta=0.3)}

    found = over_chunks(*own, compare, temperature=1.5, chunk=chunk)["loss"]
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    for ours, full in zip(own, whole, strict=True):
        torch.testing.assert_close(ours.grad, full.grad)


def test_nothing_as_wide_as_the_vocabulary_is_kept_for_the_backward_pass():
    hidden, head, _, _ = inputs(torch.float32)
    hidden, kept = hidden.requires_grad_(), []

    def pack(tensor):
        kept.append(tensor.shape[-1])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        over_chunks(hidden, head, lambda logp, rows: {"a": logp.square().sum(-1)}, chunk=3)
    assert kept and head.shape[0] not in kept


def test_bfloat16_is_widened_before_the_product():
    hidden, head, _, _ = (x.bfloat16() for x in inputs())
    assert log_probs(hidden, head).dtype == torch.float32
