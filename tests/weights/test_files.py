"""Checkpoint files: every fault is named, and peak memory is the weights plus one shard."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from etude.errors import EtudeError
from etude.weights.files import INDEX, SINGLE, Files, fill, write
from etude.weights.layout import Layout, stack

LAYOUT = Layout(
    {"a.weight": "x.weight", "experts.up": stack("y.{e}.up"), "experts.bias": "y.bias"},
    copies={"twice.weight": "a.weight"},
)


class Model(nn.Module):
    def __init__(self, experts=3):
        super().__init__()
        self.a = nn.Linear(4, 6, bias=False)
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.randn(experts, 5, 4))
        self.experts.register_buffer("bias", torch.randn(experts))


def shapes(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def store(folder, model, shard_bytes=1e9):
    folder.mkdir(exist_ok=True)
    write(folder, LAYOUT.spell(shapes(model)), model.state_dict(), shard_bytes=shard_bytes)
    return folder


def restore(folder, *, dtype=torch.float32):
    with torch.device("meta"):
        model = Model()
    fill(model, LAYOUT, Files(folder), dtype=dtype, device=torch.device("cpu"))
    return model


@pytest.mark.parametrize("shard_bytes", [1e9, 150.0, 1.0])
def test_what_was_written_is_read_back_bit_for_bit(tmp_path, shard_bytes):
    model = Model()
    again = restore(store(tmp_path, model, shard_bytes))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert isinstance(again.a.weight, nn.Parameter)


def test_a_stack_is_stored_as_one_tensor_per_index_and_copies_are_written(tmp_path):
    model = Model()
    held = load_file(store(tmp_path, model) / SINGLE)
    assert held.keys() == {"x.weight", "twice.weight", "y.0.up", "y.1.up", "y.2.up", "y.bias"}
    assert torch.equal(held["y.1.up"], model.experts.up[1])
    assert torch.equal(held["twice.weight"], model.a.weight)


def test_shards_stay_within_their_size_and_the_index_names_every_tensor(tmp_path):
    store(tmp_path, Model(), shard_bytes=200)
    told = json.loads((tmp_path / INDEX).read_text())
    files = {file: load_file(tmp_path / file) for file in set(told["weight_map"].values())}
    assert {n: f for f, held in files.items() for n in held} == told["weight_map"]
    sizes = [sum(t.numel() * 4 for t in held.values()) for held in files.values()]
    assert sum(sizes) == told["metadata"]["total_size"] and max(sizes) <= 200
    assert sorted(files) == [
        f"model-{n + 1:05}-of-{len(files):05}.safetensors" for n in range(len(files))
    ]


def test_parameters_take_the_dtype_and_a_float32_buffer_stays_float32(tmp_path):
    model = Model()
    again = restore(store(tmp_path, model), dtype=torch.bfloat16)
    assert again.a.weight.dtype == again.experts.up.dtype == torch.bfloat16
    assert again.experts.bias.dtype == torch.float32
    assert torch.equal(again.experts.bias, model.experts.bias)
    stored = load_file(store(tmp_path, again) / SINGLE)
    assert stored["y.bias"].dtype == torch.float32 and stored["y.0.up"].dtype == torch.bfloat16


def test_a_copy_that_differs_is_named(tmp_path):
    held = load_file(store(tmp_path, Model()) / SINGLE)
    held["twice.weight"] = held["twice.weight"] + 1
    save_file(held, tmp_path / SINGLE)
    with pytest.raises(EtudeError, match=r"twice.weight: differs .* x.weight"):
        restore(tmp_path)


def test_a_copy_of_another_shape_is_named(tmp_path):
    held = load_file(store(tmp_path, Model()) / SINGLE)
    held["twice.weight"] = held["twice.weight"][:-1].clone()
    save_file(held, tmp_path / SINGLE)
    with pytest.raises(EtudeError, match=r"twice.weight: differs .* x.weight"):
        restore(tmp_path)


@pytest.mark.parametrize("row", [0, 3, 5])
def test_a_copy_is_compared_to_its_last_row(tmp_path, monkeypatch, row):
    monkeypatch.setattr("etude.weights.files.BLOCK", 8)  # two of six rows at a time
    held = load_file(store(tmp_path, Model()) / SINGLE)
    restore(tmp_path)
    held["twice.weight"][row, -1] += 1e-3
    save_file(held, tmp_path / SINGLE)
    with pytest.raises(EtudeError, match="twice.weight: differs"):
        restore(tmp_path)


def test_a_copy_may_be_absent(tmp_path):
    held = load_file(store(tmp_path, Model()) / SINGLE)
    del held["twice.weight"]
    save_file(held, tmp_path / SINGLE)
    restore(tmp_path)


def test_missing_left_over_and_mis_shaped_tensors_are_named_in_one_error(tmp_path):
    held = load_file(store(tmp_path, Model()) / SINGLE)
    held["z"] = held.pop("y.1.up")
    held["y.bias"] = torch.zeros(9)
    save_file(held, tmp_path / SINGLE)
    with pytest.raises(EtudeError) as caught:
        restore(tmp_path)
    for part in ("1 missing (y.1.up)", "1 left over (z)", "y.bias [9] for [3]", str(tmp_path)):
        assert part in str(caught.value)


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_truncated_shard_is_named(tmp_path, cut):
    store(tmp_path, Model(), shard_bytes=200)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    assert shard.exists()
    os.truncate(shard, max(4, shard.stat().st_size - cut))
    with pytest.raises(
        EtudeError, match="model-00002-of-00003.safetensors: is truncated or corrupt"
    ):
        restore(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    store(tmp_path, Model(), shard_bytes=200)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(EtudeError, match="model-00002-of-00003.safetensors: no such file"):
        restore(tmp_path)


def test_a_file_of_another_format_is_named(tmp_path):
    (tmp_path / SINGLE).write_bytes((40).to_bytes(8, "little") + b"\xff" * 90)
    with pytest.raises(EtudeError, match="model.safetensors: is not a safetensors file"):
        restore(tmp_path)


def test_an_index_that_disagrees_with_a_shard_is_an_error(tmp_path):
    store(tmp_path, Model(), shard_bytes=200)
    told = json.loads((tmp_path / INDEX).read_text())
    told["weight_map"]["q.weight"] = "model-00001-of-00003.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(told))
    with pytest.raises(EtudeError, match="00001-of-00003.safetensors: has no tensor q.weight"):
        restore(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(
        EtudeError, match=f"{name}: is a pickle.* convert the checkpoint to safetensors"
    ):
        Files(tmp_path)


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(EtudeError, match="holds no weights"):
        Files(tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(EtudeError, match="model.safetensors: cannot be written"):
            store(tmp_path, Model())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


PEAK = """
import sys, threading, time, torch
from pathlib import Path
from torch import nn
from etude.weights.files import Files, fill, write
from etude.weights.layout import Layout, stack

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.zeros(1024, 1024)) for _ in range(12)])
        self.up = nn.Parameter(torch.zeros(8, 1024, 1024))
        self.embed = nn.Parameter(torch.zeros(4096, 1024))

names = {"w.{i}": "a.{i}", "up": stack("b.{e}"), "embed": "embed"}
layout = Layout(names, copies={"again": "embed"})
folder = Path(sys.argv[1])

def resident():
    told = Path("/proc/self/status").read_text()
    return int(told.split("VmHWM:")[1].split()[0]) / 1024

def reset():
    open("/proc/self/clear_refs", "w").write("5")

model = Model()
for p in model.parameters():
    nn.init.ones_(p)
state = model.state_dict()
pieces = layout.spell({n: tuple(t.shape) for n, t in state.items()})
reset(); before = resident()
write(folder, pieces, state, shard_bytes=16 * 2**20)
print(resident() - before)
del model, state, p
with torch.device("meta"):
    model = Model()
files = Files(folder)
reset(); before = resident()
fill(model, layout, files, dtype=torch.float32, device=torch.device("cpu"))
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_is_the_weights_and_one_shard(tmp_path):
    """96 MB of weights in shards of 16 MB: 16 to write, 96 + 16 to read, and some slack.

    One tensor is stored twice and fills a shard. Measured 128 to 134 to read; 231 where the two are
    compared whole.
    """
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, read = map(float, done.stdout.split())
    assert written < 16 + 12
    assert 90 < read < 96 + 16 + 28
