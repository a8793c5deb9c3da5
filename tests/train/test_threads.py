"""The number of threads: chosen once, kept for good."""

import json
import time

import pytest
import torch

from etude.errors import EtudeError
from etude.train import threads


@pytest.fixture(autouse=True)
def _restore():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def probe(many, one=0.02):
    """Work that takes `many` seconds with all cores and `one` with one."""
    return lambda: time.sleep(one if torch.get_num_threads() == 1 else many)


@pytest.mark.parametrize(("many", "chosen"), [(0.002, 2), (0.0195, 1), (0.04, 1)])
def test_more_threads_are_taken_only_when_clearly_faster(monkeypatch, tmp_path, many, chosen):
    monkeypatch.setattr(threads, "cores_here", lambda: 2)
    assert threads.settle(tmp_path, 0, probe(many)) == chosen == torch.get_num_threads()
    assert json.loads((tmp_path / "threads.json").read_text()) == {"threads": chosen}


def test_the_choice_stands_when_the_run_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "cores_here", lambda: 2)
    assert threads.settle(tmp_path, 0, probe(0.0)) == 2

    def fail():
        raise AssertionError("timed again")

    assert threads.settle(tmp_path, 0, fail) == 2
    assert threads.settle(tmp_path, 1, fail) == 1  # unless one is asked for
    assert threads.settle(tmp_path, 0, fail) == 1


@pytest.mark.parametrize("content", ["[]", '"x"', "{}", '{"threads": "2"}', '{"threads": 0}'])
def test_a_damaged_note_of_the_threads_is_named(tmp_path, content):
    (tmp_path / "threads.json").write_text(content)
    told = "threads.json: is damaged; delete it, and the threads are timed again"
    with pytest.raises(EtudeError, match=told):
        threads.settle(tmp_path, 0, probe(0.0))


def test_cores_are_bounded_as_torch_itself_is(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.cores_here() == 1 == threads.fastest(probe(0.0))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.cores_here() >= 1
