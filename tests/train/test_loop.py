"""One step: what it divides by, what it moves, what it leaves alone."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from etude.errors import EtudeError
from etude.objectives import balance
from etude.optim.build import optimizers
from etude.parallel.mesh import Ranks
from etude.recipe import parts
from etude.train.loop import SKIPS_IN_A_ROW, Progress, Trainer, train
from etude.train.objective import NextToken
from tests.train import tiny


def trainer(spec=None, objective=None, **more):
    model = tiny.model(**more)
    spec = spec or tiny.spec()
    return Trainer(
        model, objective or NextToken(), optimizers(model, spec.optimizer), spec, Ranks()
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def gradients(subject, micros, progress=None):
    """Gradients that one step hands to the optimizers."""
    kept = {}

    def keep():
        kept.update(
            {subject.optimizers.names[p]: p.grad.clone() for p in subject.optimizers.params}
        )

    subject.optimizers.step = keep
    values = subject.step(micros, progress or Progress(1000))
    return kept, values


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
@pytest.mark.parametrize("sizes", [[5, 5], [1, 2, 3, 3, 1]])
def test_the_gradient_is_the_same_however_the_step_is_cut(sizes, aggregate):
    whole = tiny.rows(0, 10)
    expected, one = gradients(trainer(objective=NextToken(aggregate)), [whole])
    found, many = gradients(trainer(objective=NextToken(aggregate)), tiny.cut(whole, sizes))
    for name, gradient in expected.items():
        # measured 2e-7; a mean of means moves 1e-2
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0)
    for name in ("loss", "mtp_loss", "balance", "grad_norm", "tokens", "max_load"):
        assert many[name] == pytest.approx(one[name], abs=1e-5), name
    assert many["load"] == one["load"]


@pytest.mark.parametrize("sizes", [[5, 5], [1, 2, 3, 3, 1]])
def test_the_balance_over_the_batch_is_the_same_however_the_step_is_cut(sizes):
    """Choices counted in each micro-batch alone move the gradient by 0.06."""
    whole = tiny.rows(0, 10)
    expected, one = gradients(trainer(tiny.spec(balance=tiny.EVEN)), [whole])
    found, many = gradients(trainer(tiny.spec(balance=tiny.EVEN)), tiny.cut(whole, sizes))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0)
    assert many["balance_batch"] == pytest.approx(one["balance_batch"], abs=1e-6)


def test_the_balance_over_the_batch_pulls_on_the_routers_and_all_below_them():
    """By hand: experts E times the sum over them of choices per token times mean probability."""
    rows, model = tiny.rows(0, 4), tiny.model()
    scores = model(rows.ids, segments=rows.segments, pos=rows.pos, labels=rows.labels)
    total = 0.0
    for route in scores.routes:
        chosen, weights = route.chosen[route.valid], route.scores[route.valid]
        often = torch.bincount(chosen.flatten(), minlength=5) / len(chosen)
        total = total + 5 * (often * (weights / weights.sum(1, keepdim=True)).mean(0)).sum()
    wanted = torch.autograd.grad(total, [router.weight for _, router in model.routers()])
    plain = parts.Balance(bias_rate=0, sequence_weight=0.0)
    without, _ = gradients(trainer(tiny.spec(balance=plain, clip=1e9)), [rows])
    summed = replace(plain, batch_weight=1.0, batch_form="sum")
    found, values = gradients(trainer(tiny.spec(balance=summed, clip=1e9)), [rows])
    names = [f"{name}.weight" for name, _ in model.routers()]
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name] - without[name], gradient, atol=1e-6, rtol=0)
    assert values["balance_batch"] == pytest.approx(total.item() / len(names) / 2, abs=1e-5)


def test_the_loss_of_a_step_is_the_sum_that_the_report_states():
    subject, rows = trainer(), tiny.rows(0, 4)
    model = tiny.model()
    scores = model(rows.ids, segments=rows.segments, pos=rows.pos, labels=rows.labels)
    logp, labels = scores.mtp[0]
    main = -scores.logp.sum() / rows.tokens
    extra = -logp.sum() / (labels != -100).sum()
    even = sum(balance.sequence(r.scores, r.chosen, r.valid).mean() for r in scores.routes)
    (main + 0.3 * extra + 1e-4 * even).backward()
    found, values = gradients(subject, [rows])
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert values["loss"] == pytest.approx(main.item(), abs=1e-5)
    assert values["mtp_loss"] == pytest.approx(extra.item(), abs=1e-5)
    assert values["balance"] == pytest.approx(even.item() / len(scores.routes), abs=1e-5)
    assert values["grad_norm"] == pytest.approx(norm, abs=1e-4)
    assert norm > 1  # so it is clipped to 1
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad / norm, atol=1e-6, rtol=0)


def test_the_bias_moves_against_the_load_of_the_whole_step():
    subject, whole = trainer(), tiny.rows(0, 6)
    model = tiny.model()
    scores = model(whole.ids, segments=whole.segments, pos=whole.pos, labels=whole.labels)
    values = subject.step(tiny.cut(whole, [2, 2, 2]), Progress(1000))
    for (_, router), route, fullest in zip(
        subject.model.routers(), scores.routes, values["max_load"], strict=True
    ):
        load = balance.load(route.chosen, route.valid, experts=5)
        assert router.bias.tolist() == (1e-2 * torch.sign(load.mean() - load)).tolist()
        assert fullest == pytest.approx(float(balance.violation(load)), abs=1e-3)


def test_rate_extra_weight_and_bias_step_are_those_of_the_tokens_seen():
    balanced = parts.Balance(bias_rate=1e-2, bias_until=150, sequence_weight=0.0)
    spec, whole = tiny.spec(balance=balanced, clip=1e9), tiny.rows(0, 4)
    found = []
    for seen in (0, 200):
        subject = trainer(spec)
        grads, values = gradients(subject, [whole], Progress(1000, tokens=seen))
        bias = torch.cat([router.bias for _, router in subject.model.routers()])
        found.append((values["lr"], grads["mtp.join.weight"], bias.abs().max().item()))
    (early, heavy, moved), (late, light, still) = found
    assert early == pytest.approx(1e-2 * int((whole.segments > 0).sum()) / 100)  # of the warm-up
    assert late == pytest.approx(1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 9)) / 2))
    torch.testing.assert_close(heavy, 3 * light)  # 0.3, and 0.1 after 150 tokens
    assert moved == pytest.approx(1e-2) and still == 0


@dataclass(frozen=True)
class Warm(tiny.Rows):
    """Rows that were sampled at a temperature."""

    temperature: float = 2.0


def test_rows_are_scored_at_the_temperature_they_were_sampled_at():
    rows = tiny.rows(0, 4)
    scores = tiny.model()(
        rows.ids, segments=rows.segments, pos=rows.pos, labels=rows.labels, temperature=2.0
    )
    values = trainer().step([Warm(**vars(rows))], Progress(1000))
    assert values["loss"] == pytest.approx(-scores.logp.sum().item() / rows.tokens, abs=1e-5)
    plain = trainer().step([rows], Progress(1000))
    assert abs(plain["loss"] - values["loss"]) > 1e-3


def test_a_resting_bias_and_an_unweighted_extra_layer_stand_still():
    spec = tiny.spec(mtp=parts.Mtp(weight=0.0), balance=parts.Balance(bias_rate=0.0))
    subject = trainer(spec)
    before = weights(subject.model)
    for step in range(2):
        subject.step([tiny.rows(step, 4)], Progress(1000))
    for name, tensor in subject.model.state_dict().items():
        # Muon blows the smallest gradient up to a full update, and decay acts on one of zero
        still = name.startswith("mtp.") or name.endswith("router.bias")
        assert tensor.equal(before[name]) == still, name


class Poisoned(NextToken):
    """Not finite at the steps named; with `slope` the loss is, and its gradient is not."""

    def __init__(self, at, *, slope=False):
        super().__init__()
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "calls", 0)
        object.__setattr__(self, "slope", slope)

    def __call__(self, scores, micro):
        loss, seen = super().__call__(scores, micro)
        object.__setattr__(self, "calls", self.calls + 1)
        if self.calls not in self.at:
            return loss, seen
        return (loss + (loss * 0).sqrt() if self.slope else loss * math.nan), seen


@pytest.mark.parametrize("slope", [False, True])
def test_a_step_that_is_not_finite_is_skipped_counted_and_leaves_no_trace(slope):
    subject = trainer(objective=Poisoned({2}, slope=slope))
    progress = Progress(10_000)
    subject.step([tiny.rows(0, 4)], progress)
    before = weights(subject.model)
    state = {name: tensor.clone() for name, tensor in subject.optimizers.state().items()}
    values = subject.step([tiny.rows(1, 4)], progress)
    assert math.isnan(values["grad_norm"]) and math.isfinite(values["loss"]) == slope
    assert values["skipped"] == progress.streak == 1
    assert all(tensor.equal(before[name]) for name, tensor in subject.model.state_dict().items())
    assert all(tensor.equal(state[name]) for name, tensor in subject.optimizers.state().items())
    subject.step([tiny.rows(2, 4)], progress)
    assert (progress.step, progress.skipped, progress.streak) == (3, 1, 0)


def test_a_stage_does_not_end_on_a_step_that_was_skipped():
    progress = Progress(1)
    train(trainer(objective=Poisoned({1})), tiny.Fixed(), progress, after=lambda values: False)
    assert (progress.step, progress.skipped, progress.streak) == (2, 1, 0)


def test_ten_steps_in_a_row_that_are_not_finite_stop_the_run():
    subject = trainer(objective=Poisoned(set(range(3, 40))))
    with pytest.raises(EtudeError, match="not finite in 10 steps in a row, up to step 12"):
        train(subject, tiny.Fixed(), Progress(10_000), after=lambda values: False)
    assert SKIPS_IN_A_ROW == 10


class Sparse(tiny.Fixed):
    """Nothing to learn at every other step: no rows, or rows without labels."""

    def next(self, progress):
        micros = super().next(progress)
        if self.at % 2:
            return micros
        return [] if self.at % 4 else [tiny.blank(micro) for micro in micros]


def test_a_step_without_anything_to_learn_moves_nothing_but_the_count():
    subject, progress, seen = trainer(), Progress(8, "steps"), []
    states = []

    def after(values):
        seen.append("idle" in values)
        states.append(weights(subject.model))
        return False

    train(subject, Sparse(), progress, after=after)
    assert seen == [False, True] * 4 and progress.step == 8
    for i in (1, 3, 5, 7):
        assert all(states[i][name].equal(tensor) for name, tensor in states[i - 1].items())
    with pytest.raises(EtudeError, match="source: gave no rows"):
        train(subject, Sparse(), Progress(10_000), after=lambda values: False)


def test_a_micro_batch_without_labels_among_others_changes_nothing():
    whole = tiny.rows(0, 4)
    empty = replace(tiny.blank(whole), segments=whole.segments * 0)
    expected, _ = gradients(trainer(), [whole])
    found, values = gradients(trainer(), [whole, empty])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0)
    assert values["tokens"] == int((whole.segments > 0).sum())


def test_values_of_the_objective_are_means_over_counted_tokens_and_extremes():
    class Watched(NextToken):
        def __call__(self, scores, micro):
            loss, _ = super().__call__(scores, micro)
            pos = micro.pos.float()
            return loss, {"pos": pos, "pos_min": pos, "pos_max": pos}

    whole = tiny.rows(0, 6)
    counted = whole.pos[whole.labels != -100].float()
    values = trainer(objective=Watched()).step(tiny.cut(whole, [2, 4]), Progress(1000))
    assert values["pos"] == pytest.approx(counted.mean().item())
    assert (values["pos_min"], values["pos_max"]) == (counted.min(), counted.max())


def test_the_model_learns_the_token_that_fills_most_places():
    subject, source, losses = trainer(), tiny.Fixed(8, 8), []
    train(subject, source, Progress(3000), after=lambda v: losses.append(v["loss"]))
    assert losses[-1] < losses[0] - 1.5  # from ln 64 = 4.2; measured 2.1 at the end
