import gzip
import json
import sys

import pytest

from etude.data import folders
from etude.data.documents import Tally
from etude.errors import EtudeError


def lines(*records: object) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def test_every_kind_of_file_is_read_in_the_order_of_the_names(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.jsonl").write_text(
        lines({"text": "one", "id": "first"}) + "\n" + lines({"text": "two"})
    )
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines({"content": "three"}).encode()))
    parquet.write_table(arrow.table({"body": ["four", "five"]}), tmp_path / "c.parquet")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/e.txt").write_text("\ufeffsix", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not read")
    found = list(folders.documents(tmp_path, domain="code"))
    assert [d.text for d in found] == ["one", "two", "three", "four", "five", "six"]
    assert [d.name for d in found[:4]] == ["first", "a.jsonl:3", "b.jsonl.gz:1", "c.parquet:1"]
    assert found[5].name == "d/e.txt"
    assert {d.domain for d in found} == {"code"}


@pytest.mark.parametrize(
    ("content", "place", "found"),
    [
        (lines({"text": "ok"}) + "{broken\n", ":2", "is not JSON"),
        (lines({"text": "ok"}, {"txt": "x"}), ":2", "a record has txt"),
        (lines({"text": 3}), ":1", "text is a int"),
        (lines(["text"]), ":1", "a record is a list"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, content, place, found):
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    with pytest.raises(EtudeError) as caught:
        list(folders.documents(tmp_path))
    assert caught.value.where == f"{file}{place}"
    assert found in str(caught.value)


def test_a_near_miss_of_the_field_name_is_suggested(tmp_path):
    (tmp_path / "x.jsonl").write_text(lines({"txt": "x"}))
    with pytest.raises(EtudeError, match="did you mean txt"):
        list(folders.documents(tmp_path))


def test_a_field_of_the_users_choice_holds_the_text(tmp_path):
    (tmp_path / "x.jsonl").write_text(lines({"text": "no", "article": "yes"}))
    source = folders.source(tmp_path, field="article", rules="any")
    assert [d.text for d in source.read(10, Tally())] == ["yes"]


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(EtudeError, match=r"x\.jsonl:2: is not UTF-8"):
        list(folders.documents(tmp_path))


def test_a_truncated_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(EtudeError, match=r"x\.parquet: is no whole parquet file"):
        list(folders.documents(tmp_path))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EtudeError, match=r"etude\[data\]"):
        list(folders.documents(tmp_path))


def test_a_folder_that_is_absent_or_holds_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(EtudeError, match="no such folder"):
        folders.source(tmp_path / "none")
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(EtudeError, match="holds 1 files of other kinds"):
        folders.source(tmp_path)


def test_a_changed_file_changes_the_sources_version(tmp_path):
    (tmp_path / "x.txt").write_text("one")
    before = folders.source(tmp_path).version
    (tmp_path / "x.txt").write_text("one more")
    assert folders.source(tmp_path).version != before
