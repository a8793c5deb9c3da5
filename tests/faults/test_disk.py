"""A disk that is full or must not be written to costs nothing but time."""

import errno
import os

import pytest
import torch

import etude as library
from etude.errors import EtudeError
from etude.files import read_json
from etude.train.lock import hold
from tests.faults.conftest import rest

SIZE = 1 << 20


def fill(folder, *, leave):
    """Take all of a small disk but some bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "others").write_bytes(bytes(max(0, free - leave)))


def weights(run, stage):
    return library.load(run / "stages" / stage / "checkpoint").state_dict()


@pytest.mark.parametrize("leave", [0, 8_000, 60_000, 500_000])
def test_a_run_on_a_full_disk_stops_with_one_line_and_goes_on_where_there_is_room(
    etude, recipe, whole, mount, leave
):
    """Full at the lock, at the tokenizer, at the first state, at a later one."""
    disk = mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs")
    fill(disk, leave=leave)
    command = ("train", recipe, "--out", disk / "run", "--until", "midtrain")
    told = etude(*command).error(code=1)
    assert "cannot be written (No space left on device)" in told or "only a part" in told
    assert told.startswith(str(disk / "run")) and "inline_container" not in told
    assert not rest(disk)
    (disk / "others").unlink()
    os.system(f"mount -o remount,size={8 * SIZE} {disk}")
    assert etude(*command).code == 0
    expected, found = weights(whole, "midtrain"), weights(disk / "run", "midtrain")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_save_on_a_full_disk_leaves_the_checkpoint_before_it(published, mount):
    disk = mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs")
    model = library.load(published)
    library.save(model, disk / "kept")
    fill(disk, leave=20_000)
    before = {path.name: path.read_bytes() for path in (disk / "kept").iterdir()}
    for folder in ("kept", "another"):
        with pytest.raises(EtudeError, match=f"{folder}.*cannot be written") as caught:
            library.save(model, disk / folder)
        assert caught.value.code == 1 and "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (disk / "kept").iterdir()} == before
    assert sorted(os.listdir(disk)) == ["kept", "others"]


def test_a_disk_that_must_not_be_written_to_is_named(
    etude, recipe, whole, tmp_path, mount, monkeypatch
):
    (tmp_path / "kept").mkdir()
    disk = mount("--bind", tmp_path / "kept")
    os.system(f"mount -o remount,ro,bind {disk}")
    told = etude("train", recipe, "--out", disk / "run").error(code=1)
    assert told.startswith(f"{disk / 'run'}: cannot be written (Read-only file system)")
    told = etude("convert", whole, disk / "made").error(code=1)
    assert told.startswith(f"{disk / 'made'}: cannot be written (Read-only file system)")
    monkeypatch.setenv("ETUDE_CACHE", str(disk / "cache"))
    told = etude("train", recipe, "--out", tmp_path / "run").error(code=1)
    assert told.startswith(f"{disk / 'cache'}") and "Read-only file system" in told
    monkeypatch.undo()
    assert not list((tmp_path / "kept").iterdir())


def test_a_run_that_may_only_be_read_is_read(etude, whole, mount):
    disk = mount("--bind", whole)
    os.system(f"mount -o remount,ro,bind {disk}")
    assert etude("show", disk).code == etude("eval", disk).code == 0
    assert library.load(disk).arch == library.load(whole).arch


@pytest.mark.parametrize(
    ("place", "told", "code"), [("file", "is a file", 2), ("file/run", "cannot be written (", 1)]
)
def test_a_file_in_the_way_of_a_run_is_named(etude, recipe, tmp_path, place, told, code):
    (tmp_path / "file").write_text("mine")
    assert told in etude("train", recipe, "--out", place).error(code=code)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_at_work_is_refused_and_left_alone(etude, recipe, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != ".lock"}
    with hold(copy):
        told = etude("train", recipe, "sft.tokens=700", "--out", copy).error(code=1)
    assert f"copy: another run is at work in it (process {os.getpid()})" in told
    assert before == {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.name != ".lock"}


def test_a_lock_is_held_where_not_one_byte_can_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with hold(tmp_path), pytest.raises(EtudeError, match="at work"), hold(tmp_path):
        pass


def test_an_error_of_a_finished_stage_costs_the_later_ones_only(etude, recipe, copy):
    """The weights a later stage starts from are gone: the error names them, the rest stays."""
    (copy / "stages" / "midtrain" / "checkpoint" / "model.safetensors").unlink()
    command = ("train", recipe, "sft.tokens=700", "--out", copy)
    told = etude(*command).error(code=2)
    assert "midtrain/checkpoint: holds no weights" in told
    assert read_json(copy / "stages" / "midtrain" / "done.json")["stage"] == "midtrain"
    assert library.load(copy / "stages" / "pretrain" / "checkpoint")
