"""New weights reach a server whole, under published names, by its own paths."""

import asyncio

import pytest
import torch

from etude.errors import EtudeError
from etude.models import checkpoint
from etude.recipe.engines import Remote
from etude.rl.remote_http import Client
from etude.rl.remote_servers import Sglang, Vllm
from etude.rl.sync import CheckpointSync, TensorSync, TransferSync, sync_of
from tests.rl.fakes import tokenizer
from tests.rl.servers import FakeSglang, FakeVllm, model, serving

KINDS = [(FakeVllm, Vllm()), (FakeSglang, Sglang())]


def push(url, sync, weights, *versions):
    async def run():
        async with Client(url, retries=0) as client:
            for version in versions:
                await sync.push(client, weights, version)

    asyncio.run(run())


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def published(policy, folder):
    """What `etude.save` writes, by name."""
    checkpoint.save(policy, folder)
    return dict(checkpoint.open_files(folder, checkpoint.read_json(folder / "config.json")))


@pytest.mark.parametrize(("kind", "dialect"), KINDS)
def test_a_server_loads_the_checkpoint_that_was_written_and_the_last_two_stay(
    kind, dialect, tmp_path
):
    policy, fake = model(3), kind(model(0))
    with serving(fake) as url:
        sync = CheckpointSync(policy, tmp_path / "out", dialect, tokenizer())
        push(url, sync, policy.state_dict(), 3, 4, 10)
    assert equal(dict(fake.model.state_dict()), dict(policy.state_dict()))
    assert fake.label == "10" and not fake.paused
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v10", "v4"]
    assert (tmp_path / "out/v10/tokenizer.json").exists()


@pytest.mark.parametrize("chunk", [1, 1 << 30])  # one tensor a request, or all in one
def test_vllm_takes_the_tensors_in_four_phases(chunk, tmp_path):
    policy, fake = model(3), FakeVllm(model(0))
    with serving(fake) as url:
        push(url, TransferSync(policy, chunk=chunk), policy.state_dict(), 1, 2)
    wanted = published(policy, tmp_path / "whole")
    assert equal(fake.tensors, wanted) and fake.label == "2" and not fake.hurt
    path = [path.removeprefix("/") for path, _ in fake.bodies]
    update = ["update_weights"] * (len(wanted) if chunk == 1 else 1)
    once = ["pause", "start_weight_update", *update, "finish_weight_update", "resume"]
    assert path == ["init_weight_transfer_engine", *once, *once]


def test_sglang_takes_the_tensors_in_the_request_and_names_them_with_the_last(tmp_path):
    policy, fake = model(3), FakeSglang(model(0), "old")
    with serving(fake) as url:
        push(url, TensorSync(policy, chunk=20_000), policy.state_dict(), 5)
    assert equal(fake.tensors, published(policy, tmp_path / "whole"))
    bodies = [body for _, body in fake.bodies]
    assert len(bodies) > 1 and [b["flush_cache"] for b in bodies] == [False] * (len(bodies) - 1) + [
        True
    ]
    assert ["weight_version" in b for b in bodies] == [b["flush_cache"] for b in bodies]


def test_a_refusal_is_one_line_and_the_server_goes_on_serving(tmp_path):
    policy, fake = model(3), FakeVllm(model(0), "1")
    fake.faults = {"/collective_rpc": [500]}
    with serving(fake) as url, pytest.raises(EtudeError, match=r"collective_rpc.*500"):
        push(url, CheckpointSync(policy, tmp_path, Vllm()), policy.state_dict(), 2)
    assert not fake.paused and fake.label == "1"


def test_sglangs_own_no_is_told(tmp_path):
    fake = FakeSglang(model(0))
    no = (200, {"success": False, "message": "shape mismatch"})
    fake.faults = {"/update_weights_from_disk": [lambda fake, body: no]}
    with serving(fake) as url, pytest.raises(EtudeError, match="refuses the weights .shape mis"):
        push(url, CheckpointSync(policy := model(3), tmp_path, Sglang()), policy.state_dict(), 2)


def test_a_vllm_without_developer_mode_is_told_how_to_start(tmp_path):
    fake = FakeVllm(model(0))
    fake.at_pause = lambda body: (404, {})
    with serving(fake) as url, pytest.raises(EtudeError, match="VLLM_SERVER_DEV_MODE=1"):
        push(url, CheckpointSync(policy := model(3), tmp_path, Vllm()), policy.state_dict(), 2)


@pytest.mark.parametrize(
    ("dialect", "sync", "told"),
    [
        (Vllm(), "tensors", "tensors, and the server is vllm"),
        (Sglang(), "transfer", "transfer, and the server is sglang"),
        (Vllm(), "transfer", "shares the memory of a GPU, and the model is on cpu"),
    ],
)
def test_a_way_that_the_server_has_not_is_refused(dialect, sync, told, tmp_path):
    spec = Remote("http://127.0.0.1:1", sync=sync)
    with pytest.raises(EtudeError, match=told):
        sync_of(spec, model(), dialect, tmp_path, None)
