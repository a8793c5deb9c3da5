"""What is exported has the fields that verl and verifiers read, and our own rewards."""

import asyncio
import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pyarrow.parquet as parquet
import pytest

from etude.data import tasks
from etude.errors import EtudeError
from etude.rl.export import compute_score, export, read, score, written

NAMES = ["rev", "sort:1,2", "instruct", "code"]


@pytest.fixture(scope="module")
def verl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verl") / "out"
    told = export("verl", folder, NAMES, count=15, held=5)
    return folder, told


def rows(folder, split):
    return parquet.read_table(folder / f"{split}.parquet").to_pylist()


def test_verls_rows_have_its_columns_and_one_user_message(verl):
    folder, told = verl
    for split, count in (("train", 15), ("test", 5)):
        found = rows(folder, split)
        assert len(found) == count and f"{count} {split}" in told
        for n, row in enumerate(found):
            names = {"data_source", "prompt", "ability", "reward_model", "extra_info"}
            assert row.keys() == names
            info = row["extra_info"]
            [message] = row["prompt"]
            assert message == {"role": "user", "content": info["question"]}
            assert row["reward_model"] == {"style": "rule", "ground_truth": info["answer"]}
            assert (info["split"], info["index"]) == (split, n)
            assert row["data_source"] == "etude/" + row["ability"]
    kinds = {(row["ability"], row["extra_info"]["level"]) for row in rows(folder, "train")}
    assert kinds == {("rev", 0), ("sort", 1), ("sort", 2), ("instruct", 0), ("code", 0)}


def test_verls_training_file_holds_no_held_out_question(verl):
    folder, _ = verl
    for split, held in (("train", False), ("test", True)):
        items = [read(row["extra_info"]["item"]) for row in rows(folder, split)]
        assert {tasks.held_out(item) for item in items} == {held}


def test_the_reward_file_is_loaded_by_path_and_scores_as_we_do(verl):
    folder, _ = verl
    spec = importlib.util.spec_from_file_location("custom_module", folder / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for row in rows(folder, "train"):
        how = {"data_source": row["data_source"], "extra_info": row["extra_info"]}
        how |= {"ground_truth": row["reward_model"]["ground_truth"]}
        right = module.compute_score(solution_str=how["ground_truth"], **how, reward_router=None)
        wrong = module.compute_score(solution_str="neither this nor that", **how)
        assert (right, wrong) == (1.0, 0.0), row["ability"]


def test_without_an_item_the_answer_is_compared():
    assert compute_score("etude/rev", "b a", "b a") == 1
    assert compute_score("etude/rev", "<think>b a</think>a b", "b a") == 0


# those that a text alone answers; `unit` needs a sandbox
PLAIN = [name for name in tasks.FAMILIES if ":" not in name and name not in ("unit", "judge")]


@pytest.mark.parametrize("name", PLAIN)
def test_an_item_is_the_same_after_it_was_written_and_read(name):
    for item in tasks.items(name, 0, 3, 0):
        again = read(written(item))
        assert score(again, item.answer) == score(item, item.answer) == 1
        assert score(again, "nothing of the kind") == 0
        assert (again.question, again.tools, again.calls) == (
            item.question,
            item.tools,
            item.calls,
        )


def verifiers():
    """Stand-ins for what an exported package takes from `verifiers.v1`."""

    class Data:
        def __init__(self, **fields):
            assert fields.keys() <= {"idx", "name", "prompt", *type(self).__annotations__}
            self.__dict__ |= fields

    class Task:
        def __class_getitem__(cls, kind):
            return cls

        def __init__(self, data, config=None):
            self.data, self.config = data, config

    class Taskset(Task):
        def __init__(self, config):
            self.config = config

    def reward(weight):
        return lambda function: setattr(function, "weight", weight) or function

    found = ModuleType("verifiers.v1")
    found.TaskData, found.Task, found.Taskset, found.Trace = Data, Task, Taskset, object
    found.TasksetConfig, found.stop, found.reward = object, lambda function: function, reward
    return found


def test_a_verifiers_package_loads_its_tasks_and_rewards_a_trace(tmp_path, monkeypatch):
    told = export("verifiers", tmp_path / "small_tasks", ["rev", "sort:1"], count=6, held=2)
    assert "small-tasks" in told
    monkeypatch.setitem(sys.modules, "verifiers", package := ModuleType("verifiers"))
    monkeypatch.setitem(sys.modules, "verifiers.v1", v1 := verifiers())
    package.v1 = v1
    monkeypatch.syspath_prepend(tmp_path / "small_tasks")
    module = importlib.import_module("small_tasks")
    for name in ("small_tasks", "small_tasks.taskset"):
        sys.modules.pop(name)
    [name] = module.__all__
    taskset = getattr(module, name)
    for split, count in (("train", 6), ("test", 2)):
        made = taskset(SimpleNamespace(split=split, task=None)).load()
        assert len(made) == count
        for n, task in enumerate(made):
            item = read(task.data.item)
            assert (task.data.idx, task.data.prompt) == (n, item.question)
            trace = SimpleNamespace(last_reply=item.answer, num_turns=1)
            assert asyncio.run(task.correct(trace)) == 1 and asyncio.run(task.single_turn(trace))
            trace.last_reply = "no"
            assert asyncio.run(task.correct(trace)) == 0
    assert task.correct.weight == 1.0
    text = (tmp_path / "small_tasks/pyproject.toml").read_text()
    assert 'name = "small-tasks"' in text and "@" not in text


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["calc"], "task calc: asks for tools"),
        (["rve"], "did you mean rev"),
        (["rev:77"], "level 77"),
        (["rev:gcd"], "task rev:gcd: no such family"),  # a colon alone makes no level
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(names, told, tmp_path):
    with pytest.raises(EtudeError, match=told):
        export("verl", tmp_path / "out", names, count=4, held=2)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_replaced(tmp_path):
    with pytest.raises(EtudeError, match="is there already"):
        export("verl", tmp_path, ["rev"], count=4, held=2)


def test_pyarrow_is_asked_for_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EtudeError, match=r"needs pyarrow.*etude\[data\]"):
        export("verl", tmp_path / "out", ["rev"], count=2, held=1)
