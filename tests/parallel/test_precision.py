"""Products in bfloat16, as on a GPU, with everything that asks for float32 left there."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from etude.optim.build import optimizers
from etude.parallel.mesh import Ranks
from etude.parallel.shard import shard, whole
from etude.train.loop import Progress, Trainer
from etude.train.objective import NextToken
from tests.train import tiny

pytestmark = pytest.mark.dist


@pytest.fixture
def one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(mesh=init_device_mesh("cpu", (1,)))
    dist.destroy_process_group()


def losses(model, ranks, kind="muon", steps=4):
    spec = tiny.spec(kind)
    trainer = Trainer(model, NextToken(), optimizers(model, spec.optimizer), spec, ranks)
    progress = Progress(10_000)
    return [trainer.step([tiny.rows(step, 4)], progress)["loss"] for step in range(steps)]


def test_products_run_low_while_weights_routers_and_scores_stay_float32(one):
    model = shard(tiny.model(), one, dtype=torch.bfloat16)
    seen = {}

    def watch(name, part):
        part.register_forward_hook(lambda module, args, out: seen.update({name: (module, out)}))

    watch("layer", model.layers[1])
    watch("router", model.layers[1].ffn.op.router)
    weight = {}
    model.layers[1].ffn.op.router.register_forward_hook(
        lambda module, args, out: weight.update(dtype=module.weight.dtype)
    )
    low = losses(model, one)
    assert seen["layer"][1].dtype == torch.bfloat16
    assert seen["router"][1][0].dtype == weight["dtype"] == torch.float32
    tensors = whole(model, one)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    exact = losses(tiny.model(), Ranks())
    # bfloat16 has 8 bits: measured 4e-4 on losses of 4
    assert low == pytest.approx(exact, abs=5e-3) and low != exact
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "router.bias" in name)


def test_sharding_twice_changes_nothing(one):
    model = shard(tiny.model(), one)
    assert shard(model, one) is model
    assert losses(model, one) == pytest.approx(losses(tiny.model(), Ranks()), abs=1e-5)
