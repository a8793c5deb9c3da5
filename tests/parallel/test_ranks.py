"""Two ranks on gloo give what one gives, and either goes on from what the other saved."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from etude.models import checkpoint
from etude.train.log import read
from tests.parallel.program import run, stopped

pytestmark = pytest.mark.dist
ROOT = Path(__file__).parents[2]
# where scores are clipped, and where balance is over the batch
MORE = {"max_logit", "max_logits", "clipped_heads", "balance_batch"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    stopped(folder / "from-one", "muon", after=5)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.parallel.program", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Warning" not in done.stderr.replace("FutureWarning", ""), done.stderr
    for kind in ("muon", "muonclip", "adamw", "even"):
        run(folder / "alone" / kind, kind)
    run(folder / "from-two", "muon")
    return folder


def assert_close(found, expected):
    lines, told = ([*read(folder / "metrics.jsonl")] for folder in (found, expected))
    assert [line["step"] for line in lines] == [line["step"] for line in told] == [*range(1, 10)]
    for line, other in zip(lines, told, strict=True):
        assert line["tokens"] == other["tokens"]
        for name in ("loss", "mtp_loss", "balance", "grad_norm", "max_load", *MORE & line.keys()):
            assert line[name] == pytest.approx(other[name], abs=1e-4), (line["step"], name)
    ours, theirs = (
        checkpoint.load(folder / "pretrain" / "checkpoint").state_dict()
        for folder in (found, expected)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # measured 1e-5 after 9 steps of rate 5e-3 and more; one missed sum over ranks moves 1e-2
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("kind", ["muon", "muonclip", "adamw", "even"])
def test_losses_and_final_weights_of_two_ranks_are_those_of_one(base, kind):
    assert_close(base / kind, base / "alone" / kind)


@pytest.mark.parametrize("name", ["from-two", "from-one"])
def test_a_stage_stopped_with_some_ranks_goes_on_with_another_number(base, name):
    assert_close(base / name, base / "alone" / "muon")
    assert not (base / name / "pretrain" / "state").exists()
