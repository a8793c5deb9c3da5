"""Worked examples of preference, distillation and reward models: values and gradients to 1e-6."""

from functools import partial

import pytest
import torch

from etude.objectives import distill
from etude.objectives import preference as p
from etude.objectives.reward_model import bradley_terry

close = partial(torch.testing.assert_close, atol=1e-6, rtol=0, check_dtype=False)


def tensor(values, **more):
    return torch.tensor(values, dtype=torch.float64, **more)


CHOSEN, REJECTED = [[-1.0, -2.0, -0.5]], [[-1.5, -2.5, -9.0]]
REF = [[-1.2, -2.1, -0.7]], [[-1.4, -2.2, -7.0]]
MASKS = torch.tensor([[True] * 3]), torch.tensor([[True, True, False]])  # the last -9 is padding


def both(reduce):
    """Margin and the two answers' own values."""

    def of(c, r):
        own = reduce(c, MASKS[0]), reduce(r, MASKS[1])
        ref = [reduce(tensor(x), m) for x, m in zip(REF, MASKS, strict=True)]
        return (own[0] - ref[0]) - (own[1] - ref[1]), *own

    return of


SUM, MEAN = both(p.pair_sum), both(p.pair_mean)
LOSSES = {
    "sigmoid": (lambda c, r: p.sigmoid(SUM(c, r)[0]), 0.649159, -0.047752, 0.047752),
    "smoothed": (
        lambda c, r: p.sigmoid(SUM(c, r)[0], smoothing=0.1),
        0.658159,
        -0.037752,
        0.037752,
    ),
    "hinge": (lambda c, r: p.hinge(SUM(c, r)[0]), 0.91, -0.1, 0.1),
    "ipo mean": (lambda c, r: p.ipo(MEAN(c, r)[0]), 21.467778, -3.088889, 4.633333),
    "ipo sum": (lambda c, r: p.ipo(SUM(c, r)[0]), 16.81, -8.2, 8.2),
    "sigmoid_norm": (lambda c, r: p.sigmoid(MEAN(c, r)[0], beta=2), 0.392248, -0.216309, 0.324464),
    "simpo": (lambda c, r: p.simpo(*MEAN(c, r)[1:]), 0.271098, -0.158305, 0.237458),
    "orpo": (lambda c, r: p.orpo(*MEAN(c, r)[1:]), 1.196388, -0.345780, 0.014868),
    "with nll": (
        lambda c, r: p.sigmoid(SUM(c, r)[0]) - p.pair_mean(c, MASKS[0]),
        *(1.815826, -0.381085, 0.047752),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_pair_has_the_loss_and_the_gradient_of_its_formula(name):
    of, value, chosen, rejected = LOSSES[name]
    c, r = tensor(CHOSEN, requires_grad=True), tensor(REJECTED, requires_grad=True)
    loss = of(c, r)
    close(loss, tensor([value]))
    loss.sum().backward()
    close(c.grad, tensor([[chosen] * 3]))
    close(r.grad, tensor([[rejected, rejected, 0.0]]))


def test_margins_are_of_the_answers_alone():
    close(SUM(tensor(CHOSEN), tensor(REJECTED))[0], tensor([0.9]))
    close(MEAN(tensor(CHOSEN), tensor(REJECTED))[0], tensor([0.366667]))


def test_the_hinge_rests_once_a_pair_is_apart_and_ipo_does_not():
    d = tensor([10.5], requires_grad=True)
    p.hinge(d).sum().backward()
    assert d.grad.tolist() == [0.0]
    d.grad = None
    p.ipo(d).sum().backward()
    assert d.grad.item() == pytest.approx(11.0)


def test_odds_of_a_certain_answer_are_finite():
    c = tensor([0.0], requires_grad=True)
    p.orpo(c, tensor([-1.0])).sum().backward()
    assert c.grad.isfinite().all()


TEACHER, STUDENT = [2.0, 1.0, 0.0], [0.0, 1.0, 1.0]
DIVERGENCES = [
    (distill.forward_kl, 0.694840, [-0.509879, 0.177590, 0.332288]),
    (distill.reverse_kl, 0.657205, [-0.328062, -0.047128, 0.375191]),
    (partial(distill.jsd, beta=0.5), 0.155752, [-0.087862, 0.016073, 0.071789]),
    (partial(distill.jsd, beta=0.1), 0.060185, None),
    (partial(distill.jsd, beta=0.0), 0.694840, [-0.509879, 0.177590, 0.332288]),
    (partial(distill.jsd, beta=1.0), 0.657205, [-0.328062, -0.047128, 0.375191]),
]


@pytest.mark.parametrize(("divergence", "value", "gradient"), DIVERGENCES)
def test_a_divergence_has_its_value_and_gradient(divergence, value, gradient):
    z = tensor(STUDENT, requires_grad=True)
    loss = divergence(tensor(TEACHER).log_softmax(-1), z.log_softmax(-1))
    close(loss, tensor(value))
    loss.backward()
    if gradient:
        close(z.grad, tensor(gradient))


def test_a_temperature_softens_both_and_is_squared_outside():
    soft = [(tensor(z) / 2).log_softmax(-1) for z in (TEACHER, STUDENT)]
    close(4 * distill.forward_kl(*soft), tensor(0.764276))


@pytest.mark.parametrize(
    ("rest", "value"), [("renorm", 1.010850), ("truncated", 0.833992), ("tail", 0.694840)]
)
def test_the_best_two_of_a_teacher_are_compared_in_three_ways(rest, value):
    best = [tensor(z).log_softmax(-1)[:2] for z in (TEACHER, STUDENT)]
    close(distill.top_k(*best, rest=rest), tensor(value))


def test_the_tail_is_a_lower_bound_that_float16_does_not_break():
    torch.manual_seed(0)
    teacher, student = (torch.randn(50, 40).mul(3).log_softmax(-1) for _ in range(2))
    best = teacher.topk(8)
    known = student.gather(-1, best.indices)
    low = distill.top_k(best.values, known)
    assert (low <= distill.forward_kl(teacher, student) + 1e-5).all() and (low > 0).all()
    stored = best.values.half().float()
    assert (distill.top_k(stored, known) - low).abs().max() < 2e-2
    sure = torch.tensor([[0.0, -12.0]])  # a sum a little above 1
    assert distill.top_k(sure, torch.tensor([[-1.0, -3.0]])).isfinite().all()


def test_tokens_that_the_teacher_likes_less_than_the_student_are_pushed_down():
    student = tensor([0.5, 0.2, 0.4]).log().requires_grad_()
    reward = distill.advantage(tensor([0.25, 0.4, 0.4]).log(), student)
    close(reward, tensor([-0.693147, 0.693147, 0.0]))
    loss = -(reward * (student - student.detach()).exp()).mean()
    loss.backward()
    close(student.grad, tensor([0.231049, -0.231049, 0.0]))
    assert distill.advantage(tensor([-300.0]), tensor([0.0]), clip=20.0).item() == -20


def test_a_weight_outside_of_the_mixture_is_refused():
    with pytest.raises(ValueError, match="from 0"):
        distill.jsd(tensor([0.0]), tensor([0.0]), beta=1.5)


def test_a_reward_model_learns_the_order_and_with_centring_the_level():
    c, r = tensor([0.5], requires_grad=True), tensor([0.2], requires_grad=True)
    loss = bradley_terry(c, r)
    close(loss, tensor([0.554355]))  # ln(1 + e^-0.3)
    loss.sum().backward()
    close(c.grad, tensor([-0.425557]))  # -sigma(-0.3)
    close(c.grad, -r.grad)
    close(bradley_terry(c, r, margin=0.3), tensor([0.693147]))
    close(bradley_terry(c, r, centring=0.01), tensor([0.559255]))
