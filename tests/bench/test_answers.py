"""The table of mixers side by side: how it chooses, measures and prints."""

import json
import math

import pytest

from etude.arch.swap import swap
from etude.bench import answers
from etude.bench.answers import MIXERS, RATES, SEEDS, Answer, rollout, run, table
from etude.evals.stats import Estimate
from etude.models import checkpoint
from etude.models.describe import planned
from etude.recipe.load import load

ONE = Estimate(0.5, 0.4, 0.6, 3)


def answer(mixer):
    return Answer(mixer, 1e-2, {1e-2: 2.0}, 445_504, ONE, {2: ONE, 8: ONE}, {256: 900.0})


def test_a_line_holds_means_with_the_reach_of_their_intervals():
    head, line = table([answer("linear")]).splitlines()
    assert head.split() == "mixer params rate bits/byte recall 2 recall 8 tok/s 256".split()
    assert line.split() == "linear 445,504 0.01 0.500 ±0.100 50 ±10 50 ±10 900".split()


def test_all_mixers_have_the_parameters_of_the_softmax_model():
    plain = planned(load("mixers_tiny"))
    for mixer in MIXERS[1:]:
        other = planned(load("mixers_tiny", [f"model.mixer={mixer}", *answers.SWAP]))
        sizes = [sum(w.size for w in answers.arch.tensors(one)) for one in (plain, other)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
        assert [layer[0].op.kind for layer in other.layers].count("attention") in (1, 8)
        assert other.layers[7][0] == plain.layers[7][0]


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_rollout_is_timed_behind_any_length(mixer):
    plain = planned(load("mixers_tiny"))
    model = checkpoint.compose(swap(plain, mixer=mixer, every=8), chat="glm45")
    assert rollout(model, 40) > 0


def test_the_rate_with_the_lowest_loss_gets_the_other_seeds(tmp_path, monkeypatch):
    asked = []

    def trained(name, overrides, *, out):
        said = dict(one.split("=") for one in overrides)
        rate, seed = float(said["optimizer.learning_rate"]), int(said["seed"])
        asked.append((rate, seed))
        out.mkdir(parents=True)
        # falls below the others only at its end
        losses = [9.0, 1.0 if rate == RATES[1] else 2.0]
        steps = [json.dumps({"loss": loss}) for loss in losses]
        (out / "metrics.jsonl").write_text("\n".join(steps))
        return out

    model = checkpoint.compose(planned(load("mixers_tiny")), chat="glm45")
    monkeypatch.setattr(answers, "train", trained)
    monkeypatch.setattr(answers, "load", lambda folder: model)
    monkeypatch.setattr(answers, "_bits", lambda model: 2.0)
    monkeypatch.setattr(answers, "_words", lambda model: None)
    monkeypatch.setattr(answers, "recalled", lambda model, words: {2: ONE})
    monkeypatch.setattr(answers, "LENGTHS", (8,))
    [found] = run(tmp_path, ["attention"])
    assert asked == [*((rate, 0) for rate in RATES), *((RATES[1], n) for n in range(1, SEEDS))]
    assert (found.rate, found.losses[RATES[1]]) == (RATES[1], 1.0)
    assert found.bits.value == 2.0 and not math.isnan(found.bits.high)
    [written] = json.loads((tmp_path / "answers.json").read_text())
    assert (written["mixer"], written["rate"]) == ("attention", RATES[1])
