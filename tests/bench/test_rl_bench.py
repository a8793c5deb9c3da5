"""A step beside TRL's, and rollouts by length: both sides do the same work, all of it counted."""

import json
from dataclasses import replace

import pytest
import torch

from etude.bench import rl, rollout
from etude.bench.sizes import SIZES
from etude.models.checkpoint import create

SMALL = rl.SIZE | {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8}
SMALL |= {"intermediate_size": 32, "moe_intermediate_size": 16, "n_routed_experts": 4}


@pytest.fixture(scope="module")
def words():
    return rl.tokenizer(SMALL["vocab_size"])


def test_a_step_of_ours_samples_and_moves_the_weights_that_sampled(words):
    model = create("glm45", "tiny", seed=0, **SMALL)
    ours = rl.Ours(model, words, prompts=4, answers=4, new=6)
    before = model.embed.weight.clone()
    ours.step()
    assert not torch.equal(model.embed.weight, before)
    assert ours.source.sampler.model is model
    assert 0 < ours.spent.length[0] <= 6
    assert all(part > 0 for part in ours.spent.cpu[0])
    seen = ours.source.metrics()
    assert seen["mixed"] > 0.5 and seen["truncated"] == 0  # cut answers count as whole ones


def test_rewards_of_chance_differ_within_groups():
    found = [rl.reward(f"answer {n}") for n in range(200)]
    assert set(found) == {0.0, 1.0} and 60 < sum(found) < 140


@pytest.mark.parity
def test_both_sides_are_timed_by_turns_on_the_same_prompts(capsys, tmp_path):
    pytest.importorskip("trl")
    how = {"size": SMALL, "prompts": 2, "answers": 4, "new": 4, "repeats": 2}
    found = rl.run(out=tmp_path, **how)
    assert found.steps == 2 and found.low <= found.ratio <= found.high
    assert found.ours > 0 and found.theirs > 0
    assert sum(part[1] for part in found.parts.values()) == pytest.approx(found.theirs, rel=0.5)
    assert all(0 < length <= 4 for length in found.lengths)
    assert json.loads((tmp_path / "rl.json").read_text())["steps"] == 2
    assert capsys.readouterr().out.count("\n") == 4


def test_answers_behind_a_context_are_timed_for_own_mixers_and_for_attention(
    capsys, monkeypatch, tmp_path
):
    size = SIZES["nemotron3"]
    small = {"vocab_size": 128, "hidden_size": 96}
    monkeypatch.setitem(SIZES, "nemotron3", replace(size, config=size.config | small))
    monkeypatch.setattr(rollout, "STEPS", 2)
    monkeypatch.setattr(rollout, "tools", lambda: (2.0, 1.0))
    made = rollout.run("nemotron3", out=tmp_path, lengths=(8, 16))
    assert [(p.side, p.length) for p in made] == [
        (side, length) for length in (8, 16) for side in ("own", "attention")
    ]
    assert all(p.tokens > 0 and 0 < p.share < 1 for p in made)
    assert len(json.loads((tmp_path / "rollout.json").read_text())["points"]) == 4
    assert (tmp_path / "rollout.svg").read_text().count("<path") == 2
    assert "2.0 s, with overlap 1.0 s" in capsys.readouterr().out


def test_attempts_that_overlap_wait_less_for_slow_tools(monkeypatch):
    monkeypatch.setattr(rl, "SIZE", SMALL)
    for name, value in {"ATTEMPTS": 3, "TURNS": 2, "TOOL": 0.05, "SHORT": 1, "LONG": 3}.items():
        monkeypatch.setattr(rollout, name, value)
    apart, _ = rollout.tools()
    assert apart >= 2 * 0.05
