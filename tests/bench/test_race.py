"""The race of objectives: who gets what setting, what a token receives, how it is told."""

import json
import math
from functools import partial
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from pydantic import TypeAdapter

from etude.bench import race, race_arm, race_fork
from etude.bench.race import RATES, UPDATES, WIDTHS, Arm, Size
from etude.bench.race_arm import Point, Result
from etude.bench.race_fork import Received, coefficients, over_rounds
from etude.bench.race_picture import fork_picture, race_picture
from etude.bench.race_table import curve, fork_table, race_table, reached, summary, whole
from etude.evals.stats import Estimate
from etude.recipe.load import load
from etude.recipe.objectives import Objective
from etude.rl.batch import pack
from etude.rl.objective import PolicyObjective
from etude.rl.rollout import Sample

SPEC = TypeAdapter(Objective).validate_python
# advantage 1 on three tokens, ratios 1, 1.5 and 0.7 (the shared example of the objectives' tests)
OLD, RATIO = [math.log(p) for p in (0.5, 0.2, 0.1)], [1.0, 1.5, 0.7]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"kind": "ppo"}, [-1, 0, -0.7]),
        ({"kind": "grpo", "clip_high": 0.2, "aggregate": "sequence"}, [-1, 0, -0.7]),
        ({"kind": "dapo", "clip_high": 0.56}, [-1, -1.5, -0.7]),
        ({"kind": "cispo", "weight_max": 1.2}, [-1, -1.2, -0.7]),
        ({"kind": "cispo", "weight_max": 5}, [-1, -1.5, -0.7]),
        # the answer's ratio is the geometric mean, 1.0164, and the same for all its tokens
        ({"kind": "gspo", "clip_low": 0.2, "clip_high": 0.2}, [-1.016396] * 3),
        ({"kind": "gspo"}, [0, 0, 0]),
    ],
)
def test_a_token_receives_what_the_formula_says(spec, expected):
    assert coefficients(SPEC(spec), OLD, RATIO, [1.0] * 3) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("objective", [*WIDTHS])
@pytest.mark.parametrize("width", [0, 1])
def test_what_is_read_from_records_is_the_gradient_that_training_had(objective, width):
    """Of a whole step, by the objective that trains, times what its mean divides each token by."""
    arm = Arm(objective, WIDTHS[objective][width], 16, 1e-4, 0)
    spec = load(race_arm.RECIPE, arm.overrides(Size())).stages[-1].objective
    answers = [(OLD, RATIO, 0.7), ([-0.9, -1.4], [0.7, 1.6], -0.7)]
    samples = [
        Sample([7, *range(len(old))], [False, *[True] * len(old)], [0.0, *old], 1)
        for old, _, _ in answers
    ]
    for sample, (_, _, worth) in zip(samples, answers, strict=True):
        sample.advantage = [worth * own for own in sample.mask]
    batch = pack(samples)
    logp = batch.logp_old.clone()
    for row, (_, ratio, _) in enumerate(answers):
        logp[row, : len(ratio)] += torch.tensor(ratio).log()
    logp.requires_grad_()
    train = PolicyObjective(spec)
    loss, seen = train(SimpleNamespace(logp=logp, entropy=None), batch)
    (loss.sum() / train.denominator(batch)).backward()
    for row, (old, _, worth) in enumerate(answers):
        n = len(old)
        divided = len(answers) * n if spec.aggregate == "sequence" else batch.tokens
        got = coefficients(spec, old, seen["ratio"][row, :n].tolist(), [worth] * n)
        assert got == pytest.approx((logp.grad[row, :n] * divided).tolist(), abs=1e-5)


def test_every_objective_has_the_same_budget_and_every_arm_is_a_recipe():
    for updates in UPDATES:
        for objective in WIDTHS:
            arms = race.sweep(objective, updates)
            assert len({arm.name for arm in arms}) == 6 == len(arms)
            for arm in arms:
                stage = load(race_arm.RECIPE, arm.overrides(Size())).stages[-1]
                assert (stage.objective.kind, stage.rollout.updates) == (objective, updates)
                assert stage.optimizer.learning_rate == arm.rate
                assert stage.keep_every == 6 * updates and not stage.objective.kl.beta


def test_words_are_tried_on_another_task_of_the_same_recipe():
    arm = Arm("cispo", "weight_max: 5", 16, 1e-4, 2, fork=True)
    recipe = load(race_arm.RECIPE, arm.overrides(Size()))
    assert recipe.stages[0].data.tasks["sum"].reflect > 0
    assert [one.name for one in recipe.stages[1].environments] == ["sum"]
    assert recipe.stages[1].rollout.record.groups == "all" and recipe.seed == 2


def test_validation_chooses_and_the_other_seeds_get_what_it_chose():
    asked = []

    def each(arms):
        asked.append(list(arms))
        # the reported questions would choose the smallest rate
        return [result(arm, validation=arm.rate * 100, test=1 - arm.rate) for arm in arms]

    found = race.race(each, seeds=3)
    swept, more = asked
    assert len(swept) == 60 and {arm.seed for arm in swept} == {0}
    assert len(more) == 20 and {arm.seed for arm in more} == {1, 2}
    for (objective, updates), results in found.items():
        assert {one.arm.rate for one in results} == {max(RATES[updates])}
        assert [one.arm.seed for one in results] == [0, 1, 2]
        assert {one.arm.objective for one in results} == {objective}


def result(arm, *, validation=0.5, test=0.5, received=()):
    points = [
        Point(done, done * 1e3, {"rev": validation, "sort": validation}, {"rev": test, "sort": end})
        for done, end in ((0, test), (6, test), (12, test + 0.2))
    ]
    return Result(arm, points, [0.2, 0.1], [0.25, 0.75], 60.0, list(received))


def found(**tests):
    arms = {name: [Arm(name, WIDTHS[name][0], 16, 1e-4, n) for n in range(3)] for name in tests}
    return {
        (name, 16): [result(arm, test=value) for arm, value in zip(arms[name], own, strict=True)]
        for name, own in tests.items()
    }


def test_a_curve_is_over_tasks_and_seeds_at_equal_rounds():
    line = curve(found(dapo=(0.2, 0.3, 0.4))["dapo", 16])
    assert [tokens for tokens, _ in line] == [0, 6e3, 12e3]
    # of 0.2, 0.2, 0.3, 0.3, 0.4, 0.4 and, at the end, one of each pair 0.2 higher
    assert line[0][1].value == pytest.approx(0.3)
    assert line[2][1].value == pytest.approx((0.3 / 2 + 0.4 + 0.4 + 0.5 / 2) / 3)
    assert line[0][1].n == 6 and line[0][1].low < 0.3 < line[0][1].high


def test_the_start_counts_for_no_objective():
    results = found(dapo=(0.2, 0.2, 0.2))["dapo", 16]
    assert whole(results).value == pytest.approx((0.2 + 0.3) / 2)
    assert results[0].chosen_by == pytest.approx(0.5)


def test_an_accuracy_is_reached_between_two_measurements_or_never():
    line = [(0.0, Estimate(0.2, 0, 0, 3)), (100.0, Estimate(0.4, 0, 0, 3))]
    assert reached(line, 0.3) == pytest.approx(50)
    assert reached(line, 0.1) == 0 and reached(line, 0.5) is None


def test_the_table_times_everyone_to_the_end_of_dapo():
    text = race_table(found(dapo=(0.2, 0.2, 0.2), cispo=(0.1, 0.1, 0.1)))
    head, dapo, cispo = text.splitlines()
    assert "to dapo end" in head
    assert dapo.split()[:4] == ["16", "dapo", "0.0001", "0.200"] and "12k" in dapo.split()
    assert "50.0%" in dapo and "never" in cispo.split()


def row(round, kind, **more):
    return Received(round, kind, **more)


def test_kinds_of_token_are_added_up_over_rounds_and_runs():
    one = row(0, "wait", sampled=1, probability=0.1, trained=2, left=1.0, whole=2.0, ratio=3.0)
    two = row(1, "wait", sampled=3, probability=0.5, trained=2, silenced=2, whole=2.0, ratio=1.0)
    both = over_rounds([one, two, row(0, "all", sampled=9)], "wait")
    assert (both.sampled, both.trained, both.silenced) == (4, 4, 2)
    assert both.probability == pytest.approx(0.4) and both.ratio == pytest.approx(2)
    assert (both.left, both.whole) == (1.0, 4.0)


WORDS = SimpleNamespace(encode=lambda text: [5, 6])  # a word of two tokens


def test_records_are_reduced_to_what_each_kind_of_token_got(tmp_path, monkeypatch):
    published = SimpleNamespace(tokenizer=WORDS)
    monkeypatch.setattr(race_fork, "load", lambda folder: SimpleNamespace(published=published))
    about = {"step": 3, "mask": [[1, 5]], "advantage": 0.5}
    logp = [math.log(p) for p in (0.9, 0.04, 0.9, 0.3)]
    lines = [
        about | {"key": "a", "ids": [9, 1, 5, 6, 5], "logp": logp},  # the last 5 begins no word
        about | {"key": "b", "ids": [9, 1, 2, 3, 4], "logp": logp},
        {"step": 3, "of": "a", "update": 49, "ratio": [1, 2, 1, 1], "clipped": [1]},
        {"step": 3, "of": "a", "update": 49, "ratio": [1, 2, 1, 1], "clipped": [1]},  # said again
        {"step": 3, "of": "b", "update": 48, "ratio": [1, 1, 1, 1], "clipped": []},
    ]
    records = tmp_path / "rl.jsonl"
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for fields, dropped, left in (("kind: dapo", 1, 0.0), ("kind: cispo", 0, 1.0)):
        stage = load(race_arm.RECIPE, [f"rl.objective={{{fields}}}"]).stages[-1]
        found = {one.kind: one for one in race_fork.received(records, stage, tmp_path)}
        # b was trained in the round's first update, where nothing has moved
        assert (found["all"].sampled, found["all"].trained, found["all"].round) == (8, 4, 3)
        wait = found["wait"]
        assert (wait.sampled, wait.trained, wait.silenced) == (1, 1, dropped)
        assert wait.probability == pytest.approx(0.04) and wait.ratio == 2
        assert (wait.left, wait.whole) == pytest.approx((left, 0.5))
        assert found["<= 0.05"].trained == 1 and found["<= 1"].trained == 2


def words():
    def run(name, n):
        got = [
            row(at, kind, sampled=10, trained=4, silenced=n, left=1.0, whole=2.0)
            for at in (0, 1)
            for kind in ("all", "wait", "<= 0.05")
        ]
        return result(Arm(name, WIDTHS[name][0], 16, 1e-4, 0, fork=True), received=got)

    return {"dapo": [run("dapo", 2)], "cispo": [run("cispo", 0)]}


def test_the_table_of_words_says_what_a_clip_drops():
    head, dapo, cispo = fork_table(words()).splitlines()
    assert "wait dropped" in head
    assert "50.0%" in dapo.split() and "0.0%" in cispo.split() and "0.50" in dapo.split()


def test_pictures_hold_a_line_for_every_objective():
    own = found(**dict.fromkeys(WIDTHS, (0.2, 0.3, 0.4)))
    for text, lines in ((race_picture(own), len(WIDTHS)), (fork_picture(words()), 6)):
        tree = ElementTree.fromstring(text)
        paths = [p for p in tree.iter("{http://www.w3.org/2000/svg}path") if p.get("stroke")]
        assert len(paths) == lines and "nan" not in text.lower()


def test_the_summary_is_plain_json():
    told = json.loads(json.dumps(summary(found(dapo=(0.2, 0.3, 0.4)), words()), allow_nan=False))
    [line] = told["race"]
    assert [point[0] for point in line["curve"]] == [0, 6e3, 12e3]
    assert {one["objective"] for one in told["fork"]} == {"dapo", "cispo"}


def test_an_arm_that_has_been_run_is_not_run_again(tmp_path, monkeypatch):
    arm, size = Arm("dapo", WIDTHS["dapo"][0], 1, 1e-4, 0), Size(rounds=12)
    trained = []
    point = Point(0, 0.0, {"rev": 0.1}, {"rev": 0.1})
    monkeypatch.setattr(race_arm, "_quietly", lambda log, how, folder: trained.append(folder))
    monkeypatch.setattr(race_arm, "warm", lambda home, seed, size, fork: (tmp_path / "w", point))
    monkeypatch.setattr(race_arm, "_read", lambda *asked: ([point], [0.1], [0.0], []))
    (tmp_path / "w").mkdir()
    run = partial(race_arm.run, tmp_path)
    first = run(arm, size)
    assert run(arm, size) == first and len(trained) == 1
    assert not trained[0].exists()  # only its result is left
    run(arm, Size(rounds=12, test=8))
    assert len(trained) == 2  # other questions are another result
