"""Every kind of objective in the loop: swapped in one line, and blind to how a step is cut."""

import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from etude.errors import EtudeError
from etude.optim.build import optimizers
from etude.parallel.mesh import Ranks
from etude.recipe import objectives as kinds
from etude.recipe import parts
from etude.recipe.load import as_data
from etude.rl.batch import micro_batches, pack
from etude.rl.objective import policy_objective
from etude.rl.rollout import Sample
from etude.train.loop import Progress, Trainer
from etude.train.step import count
from tests.rl.fakes import model
from tests.rl.test_source import at, source, spec

KINDS = ["ppo", "reinforce_pp", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo"]
KINDS += ["mirror_descent", "masked_log_ratio", "masked_importance"]
AGGREGATES = ["sequence_sum", "constant", "batch_token_prompt", "token_and_sequence"]
CUTS = [*KINDS, *({"kind": "dapo", "aggregate": name} for name in AGGREGATES)]
CUTS += [{"kind": "grpo", "kl": {"beta": 0.1}, "entropy": 0.01, "correction": "tis_sequence"}]
read = TypeAdapter(kinds.Objective).validate_python


def attempts():
    """Five attempts at two problems, of unlike lengths, scored by all who can score."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for n, length in enumerate((1, 2, 3, 7, 0)):
        size = 2 + length
        ids = [3 + n % 2] * 2 + torch.randint(5, 300, (length,), generator=draw).tolist()
        logp, old, ref = ((-torch.rand(size, generator=draw) - 5).tolist() for _ in range(3))
        mask = [False] * 2 + [True] * length
        score = [(-1.0) ** n * (0.5 + n / 10) * own for own in mask]
        more = {"old": old, "ref": ref, "advantage": score, "returns": score, "value": logp}
        made.append(Sample(ids, mask, logp, 2, **more))
    return made


def gradient(policy, objective, rows, ranks=None):
    """Gradient of a whole step, summed over micro-batches (of this rank)."""
    ranks = ranks or Ranks()
    batches = list(micro_batches(attempts(), rows, rank=ranks.rank, world=ranks.world))
    whole = count(batches, objective, depths=0, ranks=ranks).loss
    policy.zero_grad()
    for batch in batches:
        how = {"labels": batch.labels, "segments": batch.segments, "pos": batch.pos}
        scores = policy(batch.ids, **how, entropy=objective.entropy)
        (objective(scores, batch)[0].sum() / whole).backward()
    return ranks.sum(policy.head.weight.grad.clone())


@pytest.mark.parametrize("written", CUTS, ids=str)
def test_the_gradient_of_a_step_does_not_depend_on_its_micro_batches(written):
    objective, policy = policy_objective(spec(objective=read(written))), model()
    whole = gradient(policy, objective, 6)
    assert whole.isfinite().all() and whole.abs().max() > 1e-4
    for rows in (1, 3, 4):  # 5, 2 and 2 micro-batches; one of them has no trained token
        # float32: measured 2e-7 of gradients up to 1; a mean of means moves 1e-1
        torch.testing.assert_close(gradient(policy, objective, rows), whole, atol=2e-6, rtol=1e-5)


APART = ["grpo", "dr_grpo", "gspo", *CUTS[-5:]]  # one of each aggregate, and of all terms


def of_all(ranks):
    policy = model()
    return [gradient(policy, policy_objective(spec(objective=read(w))), 2, ranks) for w in APART]


def work(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.put([found.tolist() for found in of_all(Ranks(rank, 2))])
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_give_the_gradient_of_one(tmp_path):
    """The last micro-batch is one attempt, so that one rank has a row that only keeps step."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    jobs = [context.Process(target=work, args=(r, tmp_path / "store", results)) for r in range(2)]
    for job in jobs:
        job.start()
    both = [results.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join(timeout=60)
    for found in both:
        for written, two, one in zip(APART, found, of_all(Ranks()), strict=True):
            two = torch.tensor(two)
            torch.testing.assert_close(two, one, atol=2e-6, rtol=1e-5, msg=str(written))


@pytest.mark.parametrize("kind", KINDS)
def test_one_word_swaps_the_objective_of_a_stage(kind):
    """Rollouts, scores, advantages, and one step of the trainer that moves the weights."""
    stage = spec(objective=read(kind), optimizer=parts.AdamW(learning_rate=1e-3))
    made = source(objective=read(kind), optimizer=stage.optimizer)
    before = made.model.head.weight.clone()
    own = policy_objective(stage)
    trainer = Trainer(made.model, own, optimizers(made.model, stage.optimizer), stage, Ranks())
    values = trainer.step(made.next(at(0)), Progress(4, "steps"))
    assert values["grad_norm"] > 0 and not made.model.head.weight.equal(before)
    assert values["ratio_min"] == pytest.approx(1, abs=1e-3)  # the first update of a round
    assert made.metrics()["advantage_std"] > 0
    assert as_data(stage.objective)["kind"] == kind


def pair(**changes):
    """A batch of one token of each of two attempts: old -1, sampler -1.5, reference -2."""
    made = [
        Sample([3, 4], [False, True], [0, -1.5], 1, old=[0, -1.0], ref=[0, -2.0], **changes)
        for _ in range(2)
    ]
    for one, score in zip(made, (1.0, -1.0), strict=True):
        one.advantage = [0, score]
    return made


def loss_of(written, batch, logp=-1.0, entropy=None):
    now = torch.full(batch.labels.shape, logp).requires_grad_()
    spread = None if entropy is None else torch.full(batch.labels.shape, entropy)
    objective = policy_objective(spec(objective=read(written)))
    each, seen = objective(SimpleNamespace(logp=now, entropy=spread), batch)
    (slope,) = torch.autograd.grad(each.sum(), now)
    return each[:, 0].tolist(), slope[:, 0].tolist(), seen


def test_a_correction_multiplies_the_policys_term_and_not_the_pull_to_the_reference():
    """w = e^0.5; k3_unbiased of x = -1 is e^-1 in value and 1 in gradient."""
    weight, k3 = 1.6487213, 0.3678794
    written = {"kind": "grpo", "correction": {"kind": "tis_token", "cap": 2}}
    each, slope, _ = loss_of(written, pack(pair()))
    assert each == pytest.approx([-weight, weight]) and slope == pytest.approx([-weight, weight])
    each, slope, seen = loss_of(written | {"kl": {"beta": 0.1}}, pack(pair()))
    assert each == pytest.approx([-weight + 0.1 * k3, weight + 0.1 * k3])
    assert slope == pytest.approx([-weight + 0.1, weight + 0.1])
    assert seen["kl"][:, 0].tolist() == pytest.approx([k3, k3])


def test_a_bypass_takes_the_ratio_to_the_sampler():
    _, _, seen = loss_of({"kind": "cispo", "correction": "bypass"}, pack(pair()))
    assert seen["ratio"][:, 0].tolist() == pytest.approx([1.6487213] * 2)
    _, _, seen = loss_of("cispo", pack(pair()))
    assert seen["ratio"][:, 0].tolist() == [1, 1]


def test_every_correction_reaches_the_loss():
    """w = 1.65 is above these caps and outside of these windows."""
    for written, weight in (
        ({"kind": "tis_token", "cap": 1.2}, 1.2),
        ({"kind": "mask_token", "high": 1.5}, 0),
        ({"kind": "tis_sequence", "cap": 1.2}, 1.2),
        ({"kind": "mask_sequence", "cap": 1.2}, 0),
        ("mask_geometric", 0),
    ):
        each, _, seen = loss_of({"kind": "grpo", "correction": written}, pack(pair()))
        assert [abs(x) for x in each] == pytest.approx([weight] * 2)
        assert seen["corrected"].sum() == (2 if weight == 0 else 0)
    each, _, _ = loss_of({"kind": "cispo", "correction": "opsm"}, pack(pair()), logp=-2.0)
    assert each[0] != 0 and each[1] == 0


def test_an_entropy_bonus_is_taken_off():
    plain, _, _ = loss_of("grpo", pack(pair()))
    paid, _, _ = loss_of({"kind": "grpo", "entropy": 0.1}, pack(pair()), entropy=2.0)
    assert paid == pytest.approx([one - 0.2 for one in plain])
    assert policy_objective(spec(objective=read({"kind": "grpo", "entropy": 0.1}))).entropy
    assert not policy_objective(spec()).entropy


def test_a_kl_term_without_a_reference_is_said():
    blind = [replace(one, ref=None) for one in pair()]
    with pytest.raises(EtudeError, match="no reference has scored"):
        loss_of({"kind": "grpo", "kl": {"beta": 0.1}}, pack(blind))


def test_recorded_samples_are_told_what_the_update_saw_of_their_tokens():
    told = []
    first, second = pair()
    first.key = "0.0.0"
    loss_of(
        "grpo",
        pack([first, second], note=lambda *seen: told.append(seen)),
        logp=-0.5,  # ratio 1.65, above the clip where the advantage is positive
        entropy=2.0,
    )
    ((sample, ratio, clipped, entropy),) = told
    assert sample is first and ratio == pytest.approx([1.6487213])
    assert clipped == [True] and entropy == [2.0]


def test_the_constant_is_the_stages_longest_answer():
    dr = kinds.DrGrpo()
    tools = (parts.Environment(name="rev", turns=3),)
    assert policy_objective(spec(objective=dr)).constant == 12
    assert policy_objective(spec(objective=dr, environments=tools)).constant == 36
    assert policy_objective(spec(objective=replace(dr, constant=100))).constant == 100


def test_grpo_is_written_down_as_before_its_new_fields():
    """So stages of earlier recipes keep their names, and are not trained again."""
    before = {"kind": "grpo", "clip_low": 0.2, "clip_high": 0.28, "aggregate": "token"}
    before |= {"std": False, "eps": 1e-6}
    assert as_data(kinds.Grpo(std=False)) == before
    again = kinds.Grpo(entropy=0.1, correction=kinds.TisToken())
    assert read(as_data(again)) == again
