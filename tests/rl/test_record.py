"""What is recorded of rollouts: whole, small, appended to, and there again after a kill."""

import json
from types import SimpleNamespace

import pytest

from etude.errors import EtudeError
from etude.evals.rollouts.read import read
from etude.recipe.parts import Environment
from etude.recipe.rollouts import Record
from etude.rl.objective import policy_objective
from etude.rl.problems import draw
from etude.rl.record import Records, spans
from etude.rl.sample import Sample
from tests.rl.fakes import tokenizer
from tests.rl.test_rollout import item, play, solver
from tests.rl.test_source import at, source, spec

ALL = Record(groups="all", attempts="all")


def attempt(reward, text="a b", **more):
    """A prompt of one token, then a text."""
    ids = tokenizer().encode("?" + text)
    own = len(ids) - 1
    sample = Sample(ids, [False] + [True] * own, [0.0] + [-0.25] * own, 1, reward, raw=reward)
    for name, value in more.items():
        setattr(sample, name, value)
    return sample


def records(path, spec=ALL, said=None):
    return Records(path, tokenizer(), spec, None if said is None else said.append)


def keep(made, round, *groups, **how):
    problems = draw((Environment(name="rev"),), len(groups), 0)
    made.keep(round, problems, list(groups), **{"temperature": 1.0} | how)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_conversation_with_tools_is_recorded_whole(tmp_path):
    [sample] = play(solver(one := item("lookup", 1)), one)
    sample.advantage = [0.5 * own for own in sample.mask]
    keep(records(tmp_path / "rl.jsonl"), 3, [sample], version=sample.version + 2)
    [row] = lines(tmp_path / "rl.jsonl")
    assert (row["ids"], row["reward"], row["status"]) == (sample.ids, 1.0, "completed")
    assert "".join(row["pieces"]) == tokenizer().decode(sample.ids)
    assert len(row["pieces"]) == len(sample.ids)
    assert [at for a, b in row["mask"] for at in range(a, b)] == [
        at for at, own in enumerate(sample.mask) if own
    ]
    assert row["logp"] == [-0.5] * sample.length and row["advantage"] == 0.5
    assert (row["age"], row["key"], row["step"], row["tokens"]) == (2, "3.0.0", 3, sample.length)
    assert [turn["calls"] for turn in row["turns"]] == [
        *([[call.name, call.arguments]] for call in one.calls),
        [],
    ]
    assert [turn["heard"] for turn in row["turns"]] == [["tool"]] * len(one.calls) + [[]]


def test_a_letter_of_several_tokens_stands_with_its_last(tmp_path):
    keep(records(tmp_path / "rl.jsonl"), 0, [attempt(1.0, "中")])
    [row] = lines(tmp_path / "rl.jsonl")
    assert row["pieces"][-3:] == ["", "", "中"]


def test_groups_with_signal_come_first_with_their_best_and_worst(tmp_path):
    equal = [attempt(1.0) for _ in range(5)]
    mixed = [attempt(reward) for reward in (0.2, 0.9, 0.4, 0.0, 1.0)]
    keep(records(tmp_path / "rl.jsonl", Record(groups=1, attempts=3)), 0, equal, mixed)
    assert [row["key"] for row in lines(tmp_path / "rl.jsonl")] == ["0.1.4", "0.1.1", "0.1.3"]
    assert [sample.key for sample in mixed] == ["", "0.1.1", "", "0.1.3", "0.1.4"]
    assert not any(sample.key for sample in equal)


def test_what_an_update_saw_follows_the_attempt_and_only_of_recorded_ones(tmp_path):
    sample = attempt(1.0)
    made = records(tmp_path / "rl.jsonl")
    keep(made, 7, [sample])
    made.trained(sample.key, 31, [1.0, 1.30001, 0.5], [False, True, False], [0.1, 0.2, 0.3])
    made.trained("", 31, [1.0], [False])
    _, row = lines(tmp_path / "rl.jsonl")
    wanted = {"step": 7, "of": "7.0.0", "update": 31, "clipped": [1]}
    assert row == wanted | {"ratio": [1.0, 1.3, 0.5], "entropy": [0.1, 0.2, 0.3]}


def test_a_round_that_runs_again_replaces_its_lines_and_what_was_cut(tmp_path):
    path = tmp_path / "rl.jsonl"
    made = records(path)
    for round in range(3):
        keep(made, round, [sample := attempt(1.0, "中")])
        made.trained(sample.key, round, [1.0] * sample.length, [False] * sample.length)
    kept = path.read_bytes().split(b"\n")[:4]
    with path.open("ab") as file:
        file.write('{"step": 3, "key": "3.0.0", "answer": "中'.encode()[:-1])  # within a letter
    records(path).rewind(2)
    assert path.read_bytes() == b"".join(line + b"\n" for line in kept)


def test_a_line_after_one_that_was_cut_stands_alone(tmp_path):
    path = tmp_path / "rl.jsonl"
    path.write_text('{"step": 0, "cut')
    keep(records(path), 1, [attempt(1.0)])
    first, second = path.read_text().splitlines()
    assert first == '{"step": 0, "cut' and json.loads(second)["key"] == "1.0.0"


def test_a_file_as_large_as_it_may_be_ends_the_record_and_it_is_said_once(tmp_path):
    said, path = [], tmp_path / "rl.jsonl"
    made = records(path, Record(size_mb=1e-3), said)
    for round in range(6):
        keep(made, round, [attempt(1.0), sample := attempt(0.0)])
    assert 0 < path.stat().st_size <= 1000
    assert len(said) == 1 and "rollout.record.size_mb" in said[0]
    assert not sample.key


def test_what_json_has_no_word_for_is_written_all_the_same(tmp_path):
    strange = attempt(1.0, info={"error": "half \ud800", "seen": {3}})
    keep(records(tmp_path / "rl.jsonl"), 0, [strange])
    [row] = lines(tmp_path / "rl.jsonl")
    assert row["info"] == {"error": "half \ud800", "seen": "{3}"}


def test_tokens_of_several_weights_name_them(tmp_path):
    sample = attempt(1.0, versions=[-1, 4, 5, 5], version=5)
    sample.ids, sample.mask, sample.logp = [5, 6, 7, 8], [False, True, True, True], [0.0] * 4
    keep(records(tmp_path / "rl.jsonl"), 0, [sample], version=6)
    [row] = lines(tmp_path / "rl.jsonl")
    assert (row["versions"], row["age"]) == ([4, 5, 5], 2)


def test_no_record_is_wanted_and_none_can_be_written(tmp_path):
    records(None).rewind(0)
    keep(records(None), 0, [sample := attempt(1.0)])
    assert not sample.key
    (tmp_path / "file").write_text("")
    with pytest.raises(EtudeError, match="cannot be written"):
        keep(records(tmp_path / "file/rl.jsonl"), 0, [attempt(1.0)])


def test_a_mask_becomes_its_stretches_and_back():
    mask = [False, True, True, False, False, True]
    assert spans(mask) == [[1, 3], [5, 6]]
    assert spans([]) == spans([False]) == []


def test_the_updates_ratios_reach_the_record_of_a_stage(tmp_path):
    """From rollout to page: what the objective sees is found beside the attempt it belongs to."""
    made = source(records=tmp_path / "rollouts/rl.jsonl")
    objective = policy_objective(spec())
    for batch in made.next(at(0)):
        objective(SimpleNamespace(logp=batch.logp_old + 0.5, entropy=None), batch)
    rows = read(tmp_path).stages["rl"]
    trained = [row for row in rows if "ratio" in row]
    assert 4 <= len(trained) <= len(rows) == 8
    for row in trained:
        assert row["ratio"] == [pytest.approx(1.6487)] * row["tokens"]
        up = row["advantage"] > 0  # e^0.5 is beyond 1.2, which silences what should grow
        assert row["clipped"] == (list(range(row["tokens"])) if up else [])


def test_a_resumed_stage_still_records_the_updates_that_were_due(tmp_path):
    path, how = tmp_path / "rollouts/rl.jsonl", {"rollout": {"updates": 2}}
    objective = policy_objective(spec(**how))

    def update(made, step):
        for batch in made.next(at(step)):
            objective(SimpleNamespace(logp=batch.logp_old, entropy=None), batch)

    straight = source(records=path, **how)
    for step in range(4):
        update(straight, step)
    wanted = path.read_bytes()
    path.unlink()
    first = source(records=path, **how)
    update(first, 0)
    state = json.loads(json.dumps(first.state()))
    resumed = source(records=path, **how)
    resumed.restore(state)
    for step in range(1, 4):
        update(resumed, step)
    assert path.read_bytes() == wanted and wanted.count(b'"update":1') > 0
