"""Starting alone or among others, and what is said when that cannot be."""

import os
import select
import signal

import pytest
import torch

from etude.errors import EtudeError
from etude.parallel import launch
from etude.parallel.mesh import Ranks
from etude.parallel.shard import shard, whole
from etude.train.objective import NextToken
from etude.train.step import count
from tests.train import tiny


def test_one_process_on_a_cpu_needs_no_group():
    with launch.ranks("cpu", environ={}) as alone:
        assert (alone.rank, alone.world, alone.mesh, alone.main) == (0, 1, None, True)
        assert not torch.distributed.is_initialized()
        assert alone.sum(torch.ones(2)).tolist() == [1, 1] and alone.any(True)


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
TORCHRUN |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("device", "environ", "said"),
    [
        ("cpu", {"WORLD_SIZE": "2", "RANK": "0"}, "no LOCAL_RANK; start with `torchrun"),
        ("cpu", TORCHRUN | {"RANK": "2"}, "RANK: 2, expected less than WORLD_SIZE, 2; start with"),
        ("cpu", TORCHRUN | {"MASTER_PORT": "any"}, "MASTER_PORT: 'any', expected a whole number"),
        ("gpu", {}, "device: 'gpu', expected auto, cpu, cuda or cuda:N"),
        ("mps", {}, "device: 'mps', expected auto, cpu, cuda or cuda:N"),
        ("meta", {}, "device: 'meta', expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_is_missing_to_start_is_said(device, environ, said):
    with pytest.raises(EtudeError, match=said), launch.ranks(device, environ=environ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(EtudeError, match="sees no GPU"), launch.ranks("cuda", environ={}):
        pass


def test_a_rank_dies_with_the_process_that_started_it(monkeypatch):
    """A parent that is killed cannot end its ranks; this one's child holds a pipe until it ends."""
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.01)
    out, held = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            with launch._parent(watched=True):
                os.write(held, b"ready")
                while True:
                    signal.pause()
        os.close(held)
        signal.pause()
    os.close(held)
    assert os.read(out, 5) == b"ready"
    assert not select.select([out], [], [], 0.1)[0], "it lives as long as its parent"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert select.select([out], [], [], 20)[0] and os.read(out, 1) == b""


def test_without_a_mesh_a_model_stays_as_it_is():
    model = tiny.model()
    assert shard(model, Ranks()) is model
    assert whole(model, Ranks()).keys() == model.state_dict().keys()


def test_products_in_a_dtype_that_one_process_on_a_cpu_would_not_give_are_refused():
    with pytest.raises(EtudeError, match="dtype: bfloat16, but one process on a CPU"):
        shard(tiny.model(), Ranks(), dtype=torch.bfloat16)


class Pair(Ranks):
    """Two ranks, of which the other brought one micro-batch more."""

    def sum(self, tensor):
        tensor[0] = 2 * tensor[0] + 1
        return tensor


def test_ranks_with_different_numbers_of_micro_batches_are_refused_before_they_wait_forever():
    with pytest.raises(EtudeError, match="rank 1 brought 1 micro-batches of 3"):
        count([tiny.rows(0, 2)], NextToken(), depths=1, ranks=Pair(rank=1, world=2))
