"""The largest attention scores of a step: what is seen, what is logged, what is clipped."""

from dataclasses import replace

import pytest
import torch

from etude.errors import EtudeError
from etude.models.checkpoint import create
from etude.nn import attention, mla
from etude.optim.build import optimizers
from etude.optim.clip import clip_heads, shares
from etude.parallel.mesh import Ranks
from etude.recipe import parts
from etude.train.loop import Progress, Trainer
from etude.train.objective import NextToken
from etude.train.peaks import attentions, check_clip
from tests.train import tiny

MODELS = {
    "heads": lambda: tiny.model(use_qk_norm=False),
    "latent": lambda: create("kimi_k2", "tiny", seed=0, vocab_size=64),
    "latent, one block more": lambda: create(
        "kimi_k2", "tiny", seed=0, vocab_size=64, num_nextn_predict_layers=1
    ),
}


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


def trainer(model, clip=None, rate=1e-2, **more):
    muon = parts.Muon(learning_rate=rate, weight_decay=0, qk_clip=clip)
    spec = replace(tiny.spec(), optimizer=muon, **more)
    return Trainer(model, NextToken(), optimizers(model, muon), spec, Ranks())


def scores(model, rows):
    settings = {"segments": rows.segments, "pos": rows.pos, "labels": rows.labels}
    return model(rows.ids, **settings, peaks=True)


def test_recorded_maxima_are_those_of_all_scores_written_out(make, monkeypatch):
    model, rows, seen = make(), tiny.rows(0, 4), []

    def watched(q, k, v, *, mask=None, causal=False, scale=None):
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        every = q @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        read = mask & (rows.segments != 0)[:, None, :, None]
        if len(seen) == len(model.layers):  # in the extra block, only tokens that are followed
            follows = torch.zeros_like(rows.segments, dtype=torch.bool)
            follows[:, :-1] = rows.segments[:, 1:] == rows.segments[:, :-1]
            read = read & follows[:, None, :, None]
        seen.append(every.masked_fill(~read, -torch.inf).amax((0, 2, 3)))
        return attend(q, k, v, mask=mask, causal=causal, scale=scale)

    attend = attention.attend
    monkeypatch.setattr(attention, "attend", watched)
    monkeypatch.setattr(mla, "attend", watched)
    monkeypatch.setattr(mla.MLA, "absorbed", mla.MLA.expanded)  # its scores are not written out
    found = scores(model, rows).peaks
    assert [peak.layer for peak in found] == list(range(len(seen)))
    assert len(found) == len(attentions(model))
    for peak, expected in zip(found, seen, strict=True):
        # measured 2e-7 on scores of 0.01 to 1; a lost rotation, scale or mask moves 1e-2
        torch.testing.assert_close(peak.top, expected, atol=2e-6, rtol=0)


def test_looking_changes_no_score_and_no_gradient(make):
    rows, found = tiny.rows(0, 4), []
    for looks in (False, True):
        model = make()
        result = model(rows.ids, segments=rows.segments, labels=rows.labels, peaks=looks)
        result.logp.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([result.logp, *gradients])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("sizes", [[4], [1, 3], [1, 1, 1, 1]])
def test_the_maximum_of_a_step_is_over_all_its_micro_batches(make, sizes):
    whole, subject = tiny.rows(0, 4), trainer(make(), record_logits=True)
    peaks = scores(subject.model, whole).peaks
    values = subject.step(tiny.cut(whole, sizes), Progress(1000))
    tops = [float(peak.top.max()) for peak in peaks]
    assert values["max_logits"] == pytest.approx(tops, abs=1e-6)
    assert values["max_logit"] == max(values["max_logits"])
    assert "clipped_heads" not in values  # seen, not touched


def test_the_step_is_that_without_clipping_and_then_the_rows_are_scaled(make):
    rows, progress = tiny.rows(0, 4), Progress(1000)
    free = trainer(make())
    tops = {peak.layer: peak.top for peak in scores(free.model, rows).peaks}
    tau = float(torch.cat(list(tops.values())).median())
    expected = free.step([rows], progress)
    for layer, module in attentions(free.model).items():
        share = shares(tops[layer].double(), tau=tau)
        clip_heads(module.arch, dict(module.named_parameters()), share)
    clipped = trainer(make(), parts.QkClip(tau=tau))
    found = clipped.step([rows], Progress(1000))
    assert found["loss"] == expected["loss"] and found["grad_norm"] == expected["grad_norm"]
    assert 0 < found["clipped_heads"] < sum(map(len, tops.values()))
    weights = free.model.state_dict()
    assert all(t.equal(weights[name]) for name, t in clipped.model.state_dict().items())


def test_a_tau_that_no_score_reaches_changes_nothing(make):
    free, bounded = trainer(make()), trainer(make(), parts.QkClip(tau=1e6))
    for subject in (free, bounded):
        subject.step([tiny.rows(0, 4)], Progress(1000))
    weights = free.model.state_dict()
    assert all(t.equal(weights[name]) for name, t in bounded.model.state_dict().items())


@pytest.mark.parametrize("name", ["heads", "latent"])
def test_clipping_holds_the_scores_of_a_run_whose_rate_is_too_high(name):
    """Kimi K2 section 2.1: without it they grow on, with it they leave tau by one step's growth."""
    tops = []
    for clip in (None, parts.QkClip(tau=0.5)):
        subject = trainer(MODELS[name](), clip, rate=5e-2, record_logits=True)
        progress = Progress(10**6)
        seen = [subject.step([tiny.rows(n, 4)], progress) for n in range(30)]
        tops.append(max(values["max_logit"] for values in seen))
    free, held = tops  # measured 3.9 and 0.9 with heads, 5.0 and 1.6 with a latent
    assert free > 3 and held < 2


def test_normalised_heads_and_models_without_scores_are_refused():
    spec = replace(tiny.spec("muonclip"), name="pretrain")
    with pytest.raises(EtudeError, match=r"pretrain\.optimizer\.qk_clip.* bounds its scores"):
        check_clip(spec, tiny.model(use_qk_norm=True))
    check_clip(tiny.spec("muon"), tiny.model(use_qk_norm=True))
