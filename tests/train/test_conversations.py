"""The mean over conversations, the two steps of a shared extra block, and the decay by a root."""

import pytest
import torch

from etude.models.checkpoint import create
from etude.nn.mtp import shift_labels
from etude.objectives.aggregate import weights
from etude.objectives.language import with_mtp
from etude.optim.build import optimizers
from etude.optim.schedule import factor
from etude.parallel.mesh import Ranks
from etude.recipe import parts
from etude.recipe.load import check
from etude.train.loop import Progress, Trainer
from etude.train.objective import NextToken
from tests.train import tiny


def test_each_conversation_of_a_packed_row_weighs_alike():
    """By hand: a row of two conversations with 2 and 1 learnt tokens, padding, then one of 3."""
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    mask = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 1, 0]]).bool()
    share = weights(mask, "sequence", segments=segments)
    third = 1 / 3
    wanted = torch.tensor([[0, 0.5, 0.5, 0, 1, 0], [third, 0, 0, third, third, 0]])
    torch.testing.assert_close(share, wanted)
    assert share.sum() == pytest.approx(3)  # conversations: what a step divides by


def test_a_conversation_without_a_learnt_token_counts_for_nothing():
    segments = torch.tensor([[1, 1, 2, 2]])
    mask = torch.tensor([[False, False, True, False]])
    assert weights(mask, "sequence", segments=segments).tolist() == [[0, 0, 1, 0]]


def test_the_mean_over_conversations_is_another_one_than_over_tokens():
    whole = tiny.rows(0, 6)
    token, sequence = (
        _trainer(tiny.model(), mean).step([whole], Progress(1000)) for mean in ("token", "sequence")
    )
    scores = tiny.model()(whole.ids, segments=whole.segments, pos=whole.pos, labels=whole.labels)
    losses = []
    for row in range(6):
        for number in whole.segments[row].unique().tolist():
            on = (whole.segments[row] == number) & (whole.labels[row] != -100)
            if on.any():
                losses.append(float(-scores.logp[row][on].detach().mean()))
    assert sequence["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert abs(token["loss"] - sequence["loss"]) > 1e-3


def _trainer(model, mean="token", **more):
    spec = tiny.spec(**more)
    return Trainer(model, NextToken(mean), optimizers(model, spec.optimizer), spec, Ranks())


def test_the_loss_of_two_extra_steps_is_their_mean_times_its_weight():
    losses = [torch.tensor(2.0), torch.tensor(4.0)]
    assert with_mtp(torch.tensor(1.0), losses, weight=0.3) == pytest.approx(1.9)


def test_a_shared_block_used_twice_gets_the_gradient_of_the_mean_of_both_steps():
    """Nemotron 3: L + lambda mean_k CE_k, each step over the labels that it has."""
    shape = {"num_nextn_predict_layers": 1, "vocab_size": 64}
    rows, model = tiny.rows(0, 4), create("nemotron3", "mini", seed=0, **shape)
    still = parts.Balance(bias_rate=0, sequence_weight=0.0)
    trainer = _trainer(model, balance=still, mtp=parts.Mtp(weight=0.3), clip=1e9)
    kept = {}
    named = dict(model.named_parameters())
    trainer.optimizers.step = lambda: kept.update({n: p.grad.clone() for n, p in named.items()})
    values = trainer.step([rows], Progress(1000))

    model.zero_grad()
    scores = model(rows.ids, segments=rows.segments, pos=rows.pos, labels=rows.labels)
    assert len(scores.mtp) == 2
    means = []
    for k, (logp, labels) in enumerate(scores.mtp, start=1):
        assert torch.equal(labels, shift_labels(rows.labels, rows.segments, k))
        means.append(-logp[labels != -100].mean())
    main = -scores.logp[rows.labels != -100].mean()
    (main + 0.3 * (means[0] + means[1]) / 2).backward()
    assert values["mtp_loss"] == pytest.approx(sum(means).item() / 2, abs=1e-5)
    for name, p in named.items():
        # measured 1e-7; the sum of both steps instead of their mean moves 1e-2
        torch.testing.assert_close(kept[name], p.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("seen", "rate"), [(20.0, 4.5e-4), (21.25, 2.2725e-4), (25.0, 4.5e-6)])
def test_the_rate_of_super_falls_by_the_root_of_the_decay_that_is_done(seen, rate):
    """Nemotron 3 Super, in trillions of tokens: min + (peak - min) (1 - sqrt(u)) in the last 5."""
    spec = parts.Schedule(
        shape="wsd", warmup="200B", decay=0.2, decay_shape="sqrt", final=0.01, begin=0
    )
    found = 4.5e-4 * factor(spec, round(seen * 1e12), 25 * 10**12)
    assert found == pytest.approx(rate, rel=1e-6)


def test_a_fine_tuning_stage_says_how_its_loss_is_averaged():
    raw = {"recipe": "r", "model": {"family": "glm45"}}
    stage = {"stage": "sft", "tokens": 1, "data": {"tasks": {"sum": {}}}, "aggregate": "rows"}
    with pytest.raises(Exception, match="aggregate"):
        check(raw | {"stages": [stage]})
    stage["aggregate"] = "sequence"
    assert check(raw | {"stages": [stage]}).stages[0].aggregate == "sequence"
