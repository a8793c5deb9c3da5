"""The decoder: padding, packing, labels, routes and multi-token prediction."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from etude.errors import EtudeError
from etude.nn.cache import Cache

spec = importlib.util.spec_from_file_location("nn_helpers", Path(__file__).with_name("helpers.py"))
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
model, rows = helpers.model, helpers.rows

# fp32, 3 layers, logits of scale 10: other shapes of products round differently by up to 2e-5;
# a token that sees a wrong key or position moves 1e-2 or more.
CLOSE = {"atol": 1e-4, "rtol": 0}


def padded(parts, side):
    width = max(map(len, parts))
    ids, mask = torch.zeros(len(parts), width).long(), torch.zeros(len(parts), width).bool()
    for i, part in enumerate(parts):
        at = slice(width - len(part), width) if side == "left" else slice(0, len(part))
        ids[i, at], mask[i, at] = part, True
    return ids, mask


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gives_what_it_gives_alone(side, groups):
    m, parts = model(groups=groups), rows(9, 5, 1)
    ids, mask = padded(parts, side)
    for kind in (mask, mask.long()):
        logits = m(ids, mask=kind)
        for i, part in enumerate(parts):
            torch.testing.assert_close(logits[i][mask[i]], m(part[None])[0], **CLOSE)


def test_what_stands_in_the_padding_does_not_matter():
    m = model()
    ids, mask = padded(rows(9, 5), "left")
    other = torch.where(mask, ids, 11)
    torch.testing.assert_close(m(ids, mask=mask)[mask], m(other, mask=mask)[mask], **CLOSE)


def packed(parts, pad=2):
    """Documents in one row with labels and segments; a tail of padding."""
    ids = torch.cat([*parts, torch.zeros(pad).long()])[None]
    labels = torch.cat(
        [*(F.pad(p[1:], (0, 1), value=-100) for p in parts), torch.full((pad,), -100)]
    )
    sizes = [torch.full((len(p),), i + 1) for i, p in enumerate(parts)]
    return ids, labels[None], torch.cat([*sizes, torch.zeros(pad).long()])[None]


@pytest.mark.parametrize("mtp", [1, 2])
def test_packed_documents_equal_separate_runs_also_ahead(mtp):
    m, parts = model(mtp=mtp), rows(7, 4, 1, 9)
    ids, labels, segments = packed(parts)
    together = m(ids, labels=labels, segments=segments, entropy=True)
    start = 0
    for part in parts:
        alone = m(part[None], labels=F.pad(part[1:], (0, 1), value=-100)[None], entropy=True)
        here = slice(start, start + len(part))
        torch.testing.assert_close(together.logp[:, here], alone.logp, **CLOSE)
        entropy = alone.entropy.where(alone.logp != 0, 0.0)
        torch.testing.assert_close(together.entropy[:, here], entropy, **CLOSE)
        for (logp, wanted), (logp_alone, wanted_alone) in zip(together.mtp, alone.mtp, strict=True):
            assert torch.equal(wanted[:, here], wanted_alone)
            torch.testing.assert_close(logp[:, here], logp_alone, **CLOSE)
        start += len(part)
    assert together.logp[:, start:].abs().max() == 0


def test_label_scores_equal_the_softmax_of_the_logits():
    m, ids = model(), torch.stack(rows(8, 8))
    labels = ids.roll(-1, 1)
    labels[:, -1] = labels[0, 2] = -100
    scores = m(ids, labels=labels, temperature=0.8, entropy=True)
    logp = (m(ids) / 0.8).log_softmax(-1)
    valid = labels != -100
    picked = logp.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    torch.testing.assert_close(scores.logp, picked.where(valid, 0.0), **CLOSE)
    spread = -(logp.exp() * logp).sum(-1)
    torch.testing.assert_close(scores.entropy, spread.where(valid, 0.0), **CLOSE)
    assert m(ids, labels=labels).entropy is None


def test_labels_ahead_are_one_further_and_stay_in_their_document():
    ids, labels, segments = packed(rows(4, 3))
    ((_, wanted),) = model()(ids, labels=labels, segments=segments).mtp
    a, b = ids[0, :4].tolist(), ids[0, 4:7].tolist()
    assert wanted[0].tolist() == [a[2], a[3], -100, -100, b[2], -100, -100, -100, -100]


def test_the_scores_ahead_are_those_of_the_block_alone():
    m, ids = model(), torch.stack(rows(8, 8))
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)
    ((logp, wanted),) = m(ids, labels=labels).mtp
    expected = m.mtp_logits(ids).log_softmax(-1)
    assert expected.shape == (2, 7, helpers.VOCAB)
    assert torch.equal(wanted[:, :-2], ids[:, 2:])
    picked = expected[:, :-1].gather(-1, ids[:, 2:, None])[..., 0]
    torch.testing.assert_close(logp[:, :-2], picked, **CLOSE)


def test_the_block_ahead_joins_the_embedding_first_and_can_be_left_out():
    m, ids = model(), torch.stack(rows(6))
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)
    assert m(ids, labels=labels, mtp=False).mtp == ()
    assert len(m(ids, labels=labels, mtp=False).routes) == 2
    before = m.mtp_logits(ids)
    with torch.no_grad():
        m.mtp.join.weight[:, :16] = 0  # the half that reads the embedding of the next token
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % helpers.VOCAB
    torch.testing.assert_close(m.mtp_logits(ids), m.mtp_logits(other), **CLOSE)
    assert (m.mtp_logits(ids) - before).abs().max() > 0.1


def test_a_model_without_the_block_says_so():
    with pytest.raises(EtudeError, match="no MTP block"):
        model(mtp=0).mtp_logits(torch.stack(rows(6)))


def test_routes_tell_who_went_where():
    m = model()
    ids, mask = padded(rows(6, 3), "right")
    labels = F.pad(ids[:, 1:], (0, 1), value=-100)
    scores = m(ids, mask=mask, labels=labels)
    assert [route.layer for route in scores.routes] == [1, 2, 3]
    assert [name for name, _ in m.routers()] == [
        "layers.1.ffn.op.router",
        "layers.2.ffn.op.router",
        "mtp.layer.ffn.op.router",
    ]
    route = scores.routes[0]
    assert route.scores.shape == (2, 6, 8)
    assert route.chosen.shape == (2, 6, 2)
    assert torch.equal(route.valid, mask)
    assert route.scores.min() >= 0
    bias = dict(m.routers())["layers.1.ffn.op.router"].bias
    best = (route.scores + bias).topk(2).indices.sort(-1).values
    assert torch.equal(route.chosen.sort(-1).values, best)
    route.scores.sum().backward()
    assert m.layers[1].ffn.op.router.weight.grad.abs().max() > 0


def test_a_constant_on_all_router_biases_changes_no_logit():
    m, ids = model(groups=4), torch.stack(rows(9, 9))
    before = m(ids)
    for _, router in m.routers():
        router.bias += 3.0
    torch.testing.assert_close(m(ids), before, atol=0, rtol=0)


@pytest.mark.parametrize("twin", ["loop", "group", "index"])
def test_the_twins_of_the_experts_give_the_same_logits(twin):
    m, ids = model(), torch.stack(rows(9, 9))
    before = m(ids)
    for layer in (m.layers[1], m.layers[2]):
        layer.ffn.op.experts.twin = twin
    torch.testing.assert_close(m(ids), before, **CLOSE)


def test_every_parameter_learns_and_the_bias_does_not():
    m, ids = model(), torch.stack(rows(32, 32))
    scores = m(ids, labels=ids.roll(-1, 1))
    (scores.logp.sum() + scores.mtp[0][0].sum()).backward()
    silent = [name for name, p in m.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert not any(router.bias.requires_grad for _, router in m.routers())


def test_the_gradient_is_that_of_the_reference_parts(monkeypatch):
    """The whole model once more with the formulas in place of the twins."""
    from etude.nn import attention, decoder, norm
    from etude.ops.attention import attend_reference
    from etude.ops.logp import label_logp_reference
    from etude.ops.norm import rms_norm_reference

    m, ids = model(), torch.stack(rows(12, 12))

    def gradients():
        m.zero_grad(set_to_none=True)
        m(ids, labels=ids.roll(-1, 1), mtp=False).logp.mean().backward()
        return {n: p.grad for n, p in m.named_parameters() if p.grad is not None}

    fast = gradients()
    monkeypatch.setattr(attention, "attend", attend_reference)
    monkeypatch.setattr(attention, "rms_norm", rms_norm_reference)
    monkeypatch.setattr(norm, "rms_norm", rms_norm_reference)
    monkeypatch.setattr(decoder, "label_logp", label_logp_reference)
    for layer in (m.layers[1], m.layers[2]):
        layer.ffn.op.experts.twin = "loop"
    slow = gradients()
    assert fast.keys() == slow.keys()
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], atol=2e-5, rtol=1e-3, msg=name)


def test_a_row_longer_than_the_model_is_an_error():
    with pytest.raises(EtudeError, match="at most 64"):
        model()(torch.zeros(1, 65).long())


def test_bfloat16_stays_near_float32():
    m, ids = model(), torch.stack(rows(9, 9))
    wide = m(ids)
    narrow = m.to(torch.bfloat16)
    logits = narrow(ids)
    assert logits.dtype == torch.float32
    assert F.cosine_similarity(logits.flatten(), wide.flatten(), dim=0) > 0.98
    scores = narrow(ids, labels=ids.roll(-1, 1))
    assert scores.logp.dtype == torch.float32
    scores.logp.sum().backward()
    assert narrow.head.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ids": torch.tensor([[1, helpers.VOCAB]])}, "ids: 1 to 40, expected 0 to 39"),
        ({"ids": torch.tensor([[1, -1]])}, "ids: -1 to 1, expected 0 to 39"),
        ({"ids": torch.ones(2, 0, dtype=torch.long)}, "one token at least"),
        ({"labels": torch.tensor([[1, helpers.VOCAB]])}, "labels: 40, expected 0 to 39"),
        ({"labels": torch.tensor([[-1, 2]])}, "labels: -1, expected 0 to 39, or -100 to ignore"),
    ],
)
def test_a_pass_that_cannot_be_is_answered_with_one_line(given, told):
    with pytest.raises(EtudeError, match=told):
        model()(**({"ids": torch.tensor([[1, 2]])} | given))


def test_a_document_id_that_comes_back_stands_for_a_document_of_its_own():
    m, ids = model(), torch.randint(0, helpers.VOCAB, (1, 6))
    back, own = torch.tensor([[1, 1, 2, 2, 1, 1]]), torch.tensor([[1, 1, 2, 2, 3, 3]])
    assert m(ids, segments=back).equal(m(ids, segments=own))


def test_documents_are_not_taken_beside_a_cache():
    m = model()
    with pytest.raises(EtudeError, match="segments: given with a cache"):
        ones = torch.ones(1, 2).long()
        m(ones, segments=ones, cache=Cache(m, rows=1, capacity=4))
