"""A write happens whole or not at all."""

import errno
import os

import pytest

from etude.errors import EtudeError, closest
from etude.files import atomic, atomic_folder, digest, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"kept": 1})
    with pytest.raises(RuntimeError), atomic(path, "w") as file:
        file.write("half")
        raise RuntimeError
    assert read_json(path) == {"kept": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_is_one_line_and_the_old_folder_stays(tmp_path):
    with atomic_folder(tmp_path / "run") as new:
        (new / "weights").write_text("old")
    with (
        pytest.raises(EtudeError, match="cannot be written") as caught,
        atomic_folder(tmp_path / "run") as new,
    ):
        (new / "weights").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free some space" in str(caught.value)
    assert (tmp_path / "run" / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["run"]


def test_a_new_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "run") as new:
            (new / text).write_text(text)
    assert os.listdir(tmp_path / "run") == ["new"]


def test_a_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(EtudeError, match=r"a\.json: is not JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(EtudeError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_a_digest_depends_on_the_borders_of_its_parts():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", b"c") == digest(b"ab", "c")


def test_an_error_is_one_line_with_its_four_parts():
    error = EtudeError("here", "was\nfound", "this", "do that")
    assert str(error) == "here: was found, expected this; do that"
    assert closest("learnin_rate", ["learning_rate", "eps"]) == "did you mean learning_rate?"
