"""The bench: honest pairs, the same work on both sides, and one line per mistake."""

import json

import pytest
import torch

from etude.bench import pair
from etude.errors import EtudeError


def test_sides_take_turns_and_the_first_repeat_only_warms_up():
    order = []
    rates = pair.measure(
        lambda: order.append("ours"), lambda: order.append("theirs"), repeats=3, tokens=10
    )
    assert order == ["theirs", "ours", "ours", "theirs"] * 2
    assert len(rates) == 3 and all(side > 0 for one in rates for side in one)


def test_the_ratio_is_the_median_over_the_pairs_with_its_spread():
    rates = [(10.0, 10.0), (30.0, 10.0), (100.0, 50.0)]
    made = pair.summary("decode", rates, threads=2, parameters=5_000_000)
    assert (made.ours, made.theirs) == (30.0, 10.0)
    assert (made.ratio, made.low, made.high) == (2.0, 1.0, 3.0)
    assert "5.0M  2 threads" in pair.line(made) and "ratio 2.00 (1.00 to 3.00)" in pair.line(made)


@pytest.mark.parametrize(
    ("how", "told"),
    [({"work": "trian"}, "did you mean train"), ({"family": "glm4"}, "did you mean glm45")],
)
def test_wrong_requests_are_answered_with_the_nearest(how, told):
    with pytest.raises(EtudeError, match=told):
        pair.run(**how)


@pytest.mark.parity
@pytest.mark.parametrize("work", [pair._decode, pair._train])
def test_both_sides_do_the_same_work(work):
    """Greedy answers are equal; after one step, weights moved by 1e-4 differ by rounding alone."""
    model = pair.create("glm45", "tiny", **pair.FIVE_MILLION["glm45"])
    peer = pair._peer(model)
    ours, theirs, _ = work(model, peer)
    assert ours() == theirs()
    gap = (model.head.weight - peer.lm_head.weight).abs().max()
    assert gap < 2e-6


@pytest.mark.parity
def test_a_run_prints_one_object_per_work_and_leaves_the_threads_as_they_were(capsys, monkeypatch):
    monkeypatch.setattr(pair, "NEW", 2)
    before = torch.get_num_threads()
    [made] = pair.run("decode", threads=1, repeats=1, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["ratio"] == made.ratio and told["threads"] == 1 and told["work"] == "decode"
    assert 4_500_000 < told["parameters"] < 5_500_000
    assert torch.get_num_threads() == before
