"""Pairs: made, read, cut into rows, and what their objectives say of them."""

import json
import random
from dataclasses import replace

import pytest
import torch

from etude.data import tasks
from etude.data.tasks_wrong import corrupted
from etude.errors import EtudeError
from etude.nn.decoder import Scores
from etude.parallel.mesh import Ranks
from etude.recipe.parts import Batch, TaskMix
from etude.recipe.post import Compare, Pairs
from etude.rl import paired
from etude.rl.kept import Kept, load, save
from etude.rl.paired import Batches, PairSource, PreferenceObjective, RewardObjective
from etude.rl.pairs import Pair, collect
from etude.rl.rows import Told, rows
from etude.train.loop import Progress
from tests.rl.fakes import model, player, tokenizer

TASKS = {"rev": TaskMix()}


@pytest.mark.parametrize("name", ["sum", "var", "rev", "sort", "calc"])
def test_a_corrupted_answer_is_wrong_and_near_the_right_one(name):
    rng = random.Random(1)
    for _ in range(20):
        item = tasks.draw(name, rng, 0)
        wrong = corrupted(item, rng)
        assert wrong is not None and tasks.score(item, item.answer) == 1
        assert tasks.score(item, wrong.answer) == 0
        assert abs(len(wrong.answer) - len(item.answer)) <= 1 + max(map(len, item.answer.split()))


def made(kind, rule=None, **more):
    spec = Pairs(kind=kind, tasks=TASKS, count=6, held_out=3, tries=2, **more)
    return collect(spec, tokenizer(), 0, player=player(rule) if rule else None)


def test_written_pairs_ask_the_same_and_hold_out_whole_questions():
    found = made("corrupted")
    assert len(found.train) == 6 and len(found.held) == 3
    prompts = []
    for pair in found.train + found.held:
        start = pair.chosen.mask.index(True)
        assert pair.chosen.ids[:start] == pair.rejected.ids[:start]
        assert pair.chosen.ids != pair.rejected.ids
        prompts.append(tuple(pair.chosen.ids[:start]))
    assert len(set(prompts)) == 9


def test_a_models_own_wrong_attempt_stands_beside_the_worked_solution():
    found = made("solution", lambda text, seed: "\nno<|user|>")
    assert len(found.train) == 6 and found.counts["too long"] == 0
    told = tokenizer().decode(found.train[0].rejected.ids)
    assert told.endswith("\nno<|user|>")
    assert not any(found.train[0].rejected.mask[: found.train[0].rejected.mask.index(True)])


def test_without_a_worse_attempt_there_is_no_pair_and_it_is_said_why():
    with pytest.raises(EtudeError, match=r"pairs: no pair is left .*\(9 all alike\)") as error:
        made("attempts", lambda text, seed: "\nno<|user|>")
    assert "\n" not in str(error.value)


def test_pairs_above_the_length_are_left_out_and_counted():
    with pytest.raises(EtudeError, match="9 too long"):
        made("corrupted", length=4)


def row(chosen="4", rejected="5", **more):
    return json.dumps({"prompt": "2 + 2?", "chosen": chosen, "rejected": rejected} | more)


def from_file(tmp_path, *lines, **more):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return collect(Pairs(kind="file", file=str(path), **more), tokenizer(), 0)


def test_pairs_of_a_file_may_hold_the_prompt_or_share_it(tmp_path):
    asked = [{"role": "user", "content": "2 + 2?"}]
    whole = [[*asked, {"role": "assistant", "content": text}] for text in ("4", "5")]
    split = [row(prompt=f"{n} + 2?") for n in range(20)]
    found = from_file(tmp_path, *split, json.dumps({"chosen": whole[0], "rejected": whole[1]}), "")
    assert found.counts["read"] == 21 and len(found.held) == 2 and len(found.train) == 19
    same = [p for p in found.train + found.held if "|>\n2 + 2" in tokenizer().decode(p.chosen.ids)]
    assert len(same) == 2 and same[0] == same[1]


WRONG = [
    ("{", "is not JSON"),
    ("[]", "is no pair"),
    (json.dumps({"chosen": "a"}), "is no pair"),
    (row("4", "4"), "chosen and rejected do not differ"),
    (row(prompt=3), "prompt: is neither text nor messages"),
    (row(chosen=[{"role": "user", "content": "a"}]), "chosen: does not end with the assistant's"),
    (json.dumps({"chosen": "a", "rejected": "b"}), "holds no turn of the user"),
    (
        row(chosen=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "4"}]),
        "answer different questions",
    ),
]


@pytest.mark.parametrize(("line", "told"), WRONG)
def test_a_line_that_is_no_pair_is_named(tmp_path, line, told):
    with pytest.raises(EtudeError, match=rf"pairs\.jsonl:2.*{told}") as error:
        from_file(tmp_path, row(), line)
    assert "\n" not in str(error.value)


def test_what_was_kept_comes_back_and_damage_is_named(tmp_path):
    import numpy as np

    told = [Told([1, 2, 3], [False, True, True]), Told([4, 5], [False, True])]
    values = {"reference": [np.array([0.5, 1.0], np.float32), np.array([2.0], np.float32)]}
    path = tmp_path / "pairs.npz"
    save(path, "me", Kept(told, {"counts": 1}, values))
    found = load(path, "me")
    assert found.told == told and found.about == {"counts": 1}
    assert [v.tolist() for v in found.values["reference"]] == [[0.5, 1.0], [2.0]]
    assert load(path, "other") is None
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(EtudeError, match="pairs.npz: is damaged; delete it"):
        load(path, "me")


CHOSEN, REJECTED = [-1.0, -2.0, -0.5], [-1.5, -2.5]
REF = [-1.2, -2.1, -0.7], [-1.4, -2.2]
EXAMPLES = [
    (Compare(), 0.649159, -0.047752, 0.047752),
    (Compare(smoothing=0.1), 0.658159, -0.037752, 0.037752),
    (Compare(kind="hinge"), 0.91, -0.1, 0.1),
    (Compare(kind="ipo"), 21.467778, -3.088889, 4.633333),
    (Compare(kind="ipo", reduce="sum"), 16.81, -8.2, 8.2),
    (Compare(kind="sigmoid_norm"), 0.392248, -0.216309, 0.324464),
    (Compare(kind="simpo"), 0.271098, -0.158305, 0.237458),
    (Compare(kind="orpo"), 1.196388, -0.345780, 0.014868),
    (Compare(nll=1), 1.815826, -0.381085, 0.047752),
]


def example():
    """The worked pair in rows: a prompt of two tokens, then the answers."""
    told = [
        Told([9, 9, 1, 2, 3], [False] * 2 + [True] * 3),
        Told([9, 9, 1, 2], [False] * 2 + [True] * 2),
    ]
    made = rows(told)
    logp, ref = torch.zeros(2, 2, 5, dtype=torch.float64)
    for table, sides in ((logp, (CHOSEN, REJECTED)), (ref, REF)):
        for place, values in enumerate(sides):
            table[place, 1 : 1 + len(values)] = torch.tensor(values)
    return replace(made, reference=ref), logp.requires_grad_()


@pytest.mark.parametrize(("spec", "value", "chosen", "rejected"), EXAMPLES)
def test_rows_of_a_pair_give_the_worked_example(spec, value, chosen, rejected):
    micro, logp = example()
    loss, seen = PreferenceObjective(spec)(Scores(logp, None, (), []), micro)
    loss.sum().backward()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert logp.grad[0].tolist() == pytest.approx([0, *[chosen] * 3, 0], abs=1e-6)
    assert logp.grad[1].tolist() == pytest.approx([0, *[rejected] * 2, 0, 0], abs=1e-6)
    if spec == Compare():
        told = {name: value.item() for name, value in seen.items()}
        assert told["reward_chosen"] == pytest.approx(0.05)
        assert told["reward_rejected"] == pytest.approx(-0.04)
        assert told["margin"] == pytest.approx(0.09) and told["accuracy"] == 1
        assert told["logp_chosen"] == pytest.approx(-3.5) and told["kl_reference"] > 0


def some(count):
    draw = random.Random(3)

    def side():
        n = draw.randint(2, 6)
        ids = [draw.randrange(1, 300) for _ in range(3 + n)]
        return Told(ids, [False] * 3 + [True] * n)

    return [Pair(side(), side()) for _ in range(count)]


def gradient(policy, pairs, given, objective, micro, last=False):
    cut = Batches(Ranks(), last).cut(pairs, given, micro)
    whole = sum(objective.denominator(part) for part in cut)
    policy.zero_grad()
    for part in cut:
        found = paired.forward(policy, part, Ranks())
        (objective(found, part)[0].sum() / whole).backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "objective", [PreferenceObjective(Compare(nll=0.2)), RewardObjective(centring=0.1)]
)
def test_the_gradient_does_not_depend_on_how_the_pairs_are_cut(objective):
    from etude.rl.reward_model import RewardDecoder

    pairs, last = some(5), isinstance(objective, RewardObjective)
    policy = model()
    if last:
        policy = RewardDecoder(policy)
        policy.reward.data.normal_(generator=torch.Generator().manual_seed(0))
    told = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    known = paired.score(model(seed=1), told, Ranks())
    given = list(zip(known[0::2], known[1::2], strict=True))
    whole = gradient(policy, pairs, given, objective, 5, last)
    for micro in (1, 2):
        for name, found in gradient(policy, pairs, given, objective, micro, last).items():
            # measured 2e-7; a mean of means moves 1e-2
            torch.testing.assert_close(found, whole[name], atol=2e-6, rtol=1e-4)


def test_a_policy_that_is_its_reference_prefers_nothing():
    pairs, policy = some(4), model()
    told = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    known = paired.score(policy, told, Ranks())
    given = list(zip(known[0::2], known[1::2], strict=True))
    assert all(len(row) == len(one.ids) - 1 for row, one in zip(known, told, strict=True))
    found = paired.measure(policy, PreferenceObjective(Compare()), pairs, given, Ranks())
    assert found["held_out_accuracy"] == 0.5
    assert abs(found["held_out_margin"]) < 1e-5


def source(pairs, **more):
    how = {"batches": Batches(Ranks()), "measure": lambda: {"held_out_accuracy": 1.0}, "every": 2}
    return PairSource(pairs, [None] * len(pairs), Batch(rows=3, micro=2), 0, **how | more)


def test_every_pair_comes_once_a_pass_and_a_restored_source_goes_on_with_the_next():
    pairs = some(6)
    made, seen = source(pairs), []
    for step in range(2):
        batches = made.next(Progress(9, "steps", step=step))
        assert [len(batch.ids) for batch in batches] == [4, 2]
        seen += [
            tuple(ids[s > 0].tolist())
            for b in batches
            for ids, s in zip(b.ids, b.segments, strict=True)
        ]
        assert ("held_out_accuracy" in made.metrics()) == (step % 2 == 0)
    assert sorted(seen) == sorted(tuple(s.ids) for p in pairs for s in (p.chosen, p.rejected))
    again = source(pairs)
    again.restore(made.state())
    one, two = (s.next(Progress(9, "steps", step=2))[0].ids for s in (made, again))
    assert torch.equal(one, two)
    with pytest.raises(EtudeError, match="saved with other pairs"):
        source(some(5)).restore(made.state())


def test_a_rank_without_a_pair_gets_one_that_does_not_count():
    cut = Batches(Ranks(1, 2)).cut(some(1), [None], 4)
    assert len(cut) == 1 and cut[0].tokens == 0
    objective = PreferenceObjective(Compare(kind="simpo"))
    policy = model()
    loss, _ = objective(paired.forward(policy, cut[0], Ranks()), cut[0])
    assert loss.tolist() == [0.0] and objective.denominator(cut[0]) == 0
