"""The cost of a long context: both halves are measured; the twin is as large and only attends."""

import json
from dataclasses import replace

import pytest

from etude import arch
from etude.bench import longctx
from etude.bench.sizes import SIZES
from etude.evals.speed import kept, rows
from etude.models.describe import describe
from etude.nn import build
from etude.nn.init import initialise
from etude.recipe.model import Model

SIZE = describe(Model(family="nemotron3", config=SIZES["nemotron3"].config))


def ops(decoder):
    return [part.op.kind for layer in decoder.layers for part in layer]


def test_the_twin_has_attention_in_every_mixer_and_as_many_parameters():
    other = longctx.twin(SIZE)
    assert other and "mamba2" in ops(SIZE) and "mamba2" not in ops(other)
    assert len(ops(other)) == len(ops(SIZE)) and other.dim == SIZE.dim
    assert arch.count(other).trunk == pytest.approx(arch.count(SIZE).trunk, rel=0.01)


def test_a_model_of_attention_alone_has_no_twin():
    assert longctx.twin(describe(Model(family="glm45"))) is None


def test_a_state_is_kept_once_and_keys_and_values_for_each_token():
    """By hand, float32: per Mamba layer a state of 12 x 64 x 64 and 3 columns of 768 + 2 x 256."""
    model = build.decoder(SIZE)
    state, token = 4 * (12 * 64 * 64 + 3 * (768 + 512)) * 4, 2 * 2 * 64 * 4
    for length in (256, 4096):
        assert kept(model, length) == state + token * length


def test_an_evaluation_has_tokens_per_second_and_what_is_kept_by_length():
    model = build.decoder(replace(SIZE, vocab=64))
    initialise(model, 0)
    found = list(rows(model, (16, 48)))
    assert [(r["level"], r["metric"]) for r in found] == [
        *((16, "tok/s"), (16, "MB kept"), (48, "tok/s"), (48, "MB kept"))
    ]
    assert all(r["value"] > 0 and r["column"] == "speed" for r in found)
    assert found[1]["value"] == kept(model, 16) / 1e6


@pytest.mark.parity
def test_every_side_is_measured_at_every_length(capsys, monkeypatch, tmp_path):
    size = SIZES["nemotron3"]
    small = {"vocab_size": 512, "hidden_size": 96}
    monkeypatch.setitem(SIZES, "nemotron3", replace(size, config=size.config | small))
    monkeypatch.setattr(longctx, "MOST", 32)
    made = longctx.run("nemotron3", threads=1, out=tmp_path, lengths=(16, 32, 64))
    assert [(p.side, p.length) for p in made] == [
        *((side, 16) for side in ("etude", "attention", "transformers")),
        *((side, 32) for side in ("etude", "attention", "transformers")),
        ("etude", 64),
    ]
    assert all(p.read_us > 0 and p.step_ms > 0 for p in made)
    by = {(p.side, p.length): p.memory for p in made}
    assert by["etude", 32] - by["etude", 16] == 16 * 2 * 2 * 64 * 4
    assert by["transformers", 32] - by["transformers", 16] == 16 * 2 * 2 * 64 * 4
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert len(json.loads((tmp_path / "longctx.json").read_text())) == 7
