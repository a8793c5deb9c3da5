"""Checkpoints that stay on the way, and their sum that is as if the rate had decayed."""

import math
import random

import pytest
import torch

from etude.cli import main
from etude.errors import EtudeError
from etude.models import checkpoint
from etude.optim.merge import decay_weights
from etude.train.log import Log
from etude.train.merge import merge
from etude.train.objective import NextToken
from etude.train.stage import run_stage
from tests.train import tiny


def test_equal_weights_emulate_a_linear_decay_but_for_the_ends():
    """By hand: over 4 stretches the factors in their middles are 7/8, 5/8, 3/8, 1/8."""
    assert decay_weights(5, "linear") == pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8])


def test_a_root_weighs_the_first_checkpoint_most():
    """By hand: 1 - sqrt(1/4) = 1/2 and 1 - sqrt(3/4) = 0.134."""
    last = 1 - math.sqrt(0.75)
    assert decay_weights(3, "sqrt") == pytest.approx([0.5, 0.5 - last, last])


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_sum_is_what_smaller_updates_would_have_left(shape, final):
    """The same gradients, each stretch's updates scaled by the factor in its middle."""
    draw, count = random.Random(0), 6
    updates = [draw.gauss(0, 1) for _ in range(count - 1)]
    places = [3.0 + sum(updates[:i]) for i in range(count)]
    weights = decay_weights(count, shape, final=final)
    fall = {
        "linear": lambda u: 1 - u,
        "sqrt": lambda u: 1 - math.sqrt(u),
        "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    }[shape]
    decayed = 3.0
    for i, update in enumerate(updates):
        decayed += (final + (1 - final) * fall((i + 0.5) / (count - 1))) * update
    merged = sum(w * place for w, place in zip(weights, places, strict=True))
    assert merged == pytest.approx(decayed) and sum(weights) == pytest.approx(1)


def test_one_checkpoint_cannot_be_merged():
    with pytest.raises(ValueError, match="at least two"):
        decay_weights(1)


def train(folder, **more):
    model = tiny.model()
    run_stage(
        tiny.spec(**more), model, tiny.Fixed(), NextToken(), folder, log=Log(folder), total=400
    )
    return model


def test_a_stage_keeps_the_checkpoints_that_the_recipe_asks_for(tmp_path):
    train(tmp_path / "a", keep_every=100)
    kept = sorted(int(path.name) for path in (tmp_path / "a/kept").iterdir())
    assert kept == [100, 200, 300, 400]
    first = checkpoint.load(tmp_path / "a/kept/100")
    last = checkpoint.load(tmp_path / "a/kept/400")
    end = checkpoint.load(tmp_path / "a/checkpoint")
    assert torch.equal(last.embed.weight, end.embed.weight)
    assert not torch.equal(first.embed.weight, end.embed.weight)


def test_nothing_stays_unasked_and_what_another_beginning_left_goes(tmp_path):
    train(tmp_path / "a", keep_every=100)
    train(tmp_path / "a")
    assert not (tmp_path / "a/kept").exists()


def test_a_merged_checkpoint_is_the_weighted_sum_of_every_tensor(tmp_path, capsys, monkeypatch):
    train(tmp_path / "a", keep_every=100)
    sources = [str(tmp_path / f"a/kept/{n}") for n in (200, 300, 400)]
    told = ["etude", "merge", *sources, "--out", str(tmp_path / "m"), "--shape", "linear"]
    monkeypatch.setattr("sys.argv", told)
    main()
    states = [checkpoint.load(source).state_dict() for source in sources]
    made = checkpoint.load(tmp_path / "m").state_dict()
    for name, value in made.items():
        wanted = sum(w * s[name] for w, s in zip([0.25, 0.5, 0.25], states, strict=True))
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=1e-6)
    assert capsys.readouterr().out.splitlines()[1] == f"+0.5000  {sources[1]}"


def test_checkpoints_of_two_models_are_not_merged(tmp_path):
    for name, width in (("a", 32), ("b", 40)):
        checkpoint.save(tiny.model(hidden_size=width), tmp_path / name)
    with pytest.raises(EtudeError, match="another model"):
        merge([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], tmp_path / "c")
