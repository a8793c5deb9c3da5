"""Rows that share a beginning are scored as if each had been read by itself."""

import pytest
import torch

from etude.models.checkpoint import create
from etude.nn.shared import share

IGNORED = -100
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
GLM = SMALL | {"head_dim": 8, "num_attention_heads": 4, "moe_intermediate_size": 16}
GLM |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "num_nextn_predict_layers": 1}
A, B = [5, 6, 7, 8], [5, 6, 9]
ROWS = [[*A, 1, 2, 3], [*B, 4], [*A, 1, 2, 3, 4, 5, 6], [*B, 1, 1, 2], [*A, 9]]
STARTS = [4, 3, 4, 3, 4]


def padded():
    width = max(map(len, ROWS))
    ids, segments = (torch.zeros(len(ROWS), width, dtype=torch.long) for _ in range(2))
    labels = torch.full((len(ROWS), width), IGNORED)
    for row, (own, start) in enumerate(zip(ROWS, STARTS, strict=True)):
        ids[row, : len(own)] = torch.tensor(own)
        segments[row, : len(own)] = 1
        labels[row, start - 1 : len(own) - 1] = torch.tensor(own[start:])
    return ids, segments, labels


def scored(model, shared, **more):
    ids, segments, labels = padded()
    model.zero_grad()
    how = {"labels": labels, "segments": segments, "entropy": True, "temperature": 0.7} | more
    scores = model(ids, shared=shared, **how)
    total = (scores.logp * torch.arange(ids.numel()).view_as(ids)).sum() + scores.entropy.sum()
    total = total + sum(logp.sum() for logp, _ in scores.mtp)
    # as the balance of experts does, whose gradient has to count a beginning once for each row
    total = total + sum(route.scores[segments != 0].square().sum() for route in scores.routes)
    total.backward()
    return scores, {name: p.grad.clone() for name, p in model.named_parameters()}


def far(model):
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)  # far from uniform, so that a mistake shows
    return model


def test_scores_and_gradients_are_those_of_rows_read_apart():
    """Measured: 2e-6 of log-probabilities near -20; a wrong place or mask moves 1e-2 and more."""
    model = far(create("glm45", "mini", seed=0, **GLM))
    apart, grads = scored(model, None)
    together, shared_grads = scored(model, share(ROWS, STARTS))
    torch.testing.assert_close(together.logp, apart.logp, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(together.entropy, apart.entropy, atol=1e-4, rtol=1e-5)
    for mine, theirs in zip(together.mtp, apart.mtp, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(
            shared_grads[name], grad, atol=2e-5 * float(grad.abs().max()), rtol=1e-3
        )


def test_every_token_of_every_row_tells_its_experts():
    model = far(create("glm45", "mini", seed=0, **GLM))
    apart, together = scored(model, None)[0], scored(model, share(ROWS, STARTS))[0]
    assert [one.layer for one in together.routes] == [one.layer for one in apart.routes]
    for mine, theirs in zip(together.routes, apart.routes, strict=True):
        assert torch.equal(mine.valid, theirs.valid)
        assert torch.equal(mine.chosen[mine.valid], theirs.chosen[mine.valid])


def test_given_experts_are_taken_where_the_tokens_stand():
    model, (ids, _, _) = far(create("glm45", "mini", seed=0, **GLM)), padded()
    routes = torch.stack([ids % 4, (ids + 1) % 4], -1).unsqueeze(2)  # equal where ids are
    apart = scored(model, None, routes=routes)[0]
    together = scored(model, share(ROWS, STARTS), routes=routes)[0]
    torch.testing.assert_close(together.logp, apart.logp, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(apart.logp, scored(model, None)[0].logp, atol=1e-2)


def test_a_beginning_stands_once_among_the_tokens_and_padding_never():
    shared = share(ROWS, STARTS)
    assert len(shared.tokens) == len(A) + len(B) + sum(
        len(row) - start for row, start in zip(ROWS, STARTS, strict=True)
    )
    assert torch.equal(shared.rows[0, :4], shared.rows[2, :4])
    assert not set(shared.rows[0, :3].tolist()) & set(shared.rows[1, :3].tolist())  # B is no A


@pytest.mark.parametrize("family", ["minimax_m1", "nemotron3"])
def test_a_model_with_a_recurrence_reads_its_rows_whole(family):
    model = far(create(family, "tiny", seed=0, vocab_size=64))
    assert not model.shares
    with torch.no_grad():
        ids, segments, labels = padded()
        how = {"labels": labels, "segments": segments}
        assert torch.equal(
            model(ids, **how).logp, model(ids, **how, shared=share(ROWS, STARTS)).logp
        )
