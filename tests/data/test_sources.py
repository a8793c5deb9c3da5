import bz2
import gzip
import json
import sys

import pytest

from etude.data import packages, sources
from etude.data.documents import Tally

LONG = "Return the sum of the parts, in the order that the caller gave them. " * 4


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `kite` whose import would raise."""
    root = tmp_path / "kite"
    (root / "sub").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "__init__.py").write_text(f'"""{LONG}"""\nraise RuntimeError("imported")\n')
    (root / "sub/a.py").write_text(f'def f():\n    """{LONG}"""\n\n\ndef g():\n    """Short."""\n')
    (root / "sub/old.py").write_text("print 'two'\n")
    (root / "tests/test_a.py").write_text(f'"""{LONG}"""\n')
    info = tmp_path / "kite-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kite\nVersion: 2.1\nLicense: MIT\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for function in (packages.folder, packages._distribution):
        function.cache_clear()
    yield root
    for function in (packages.folder, packages._distribution):
        function.cache_clear()


def test_a_package_is_found_with_version_and_licence_without_being_imported(package):
    assert packages.folder("kite") == package
    assert (packages.version("kite"), packages.licence("kite")) == ("2.1", "MIT")
    assert "kite" not in sys.modules
    assert packages.folder("no_such_package_here") is None


def test_docstrings_carry_their_names_and_short_or_unreadable_ones_are_counted(package):
    tally = Tally()
    found = list(sources.package_docstrings(package, "kite", "math", 10**6, tally))
    assert {d.name for d in found} == {"kite", "kite.sub.a.f"}
    assert {d.licence for d in found} == {"MIT"}
    assert found[0].text.split("\n\n")[0] in {"kite", "kite.sub.a.f"}
    assert tally.dropped == {
        "docstring under 200 characters": 1,
        "file is not Python of this version": 1,
    }


def test_code_is_named_by_package_and_path_and_tests_stay_out(package):
    found = list(sources.package_code(["kite"], 10**6, Tally()))
    assert sorted(d.name for d in found) == ["kite/__init__.py", "kite/sub/a.py", "kite/sub/old.py"]
    assert {(d.domain, d.source) for d in found} == {("code", "kite")}


def test_stripped_code_holds_no_docstring_that_is_read_as_prose(package):
    tally = Tally()
    found = list(sources.package_code(["kite"], 10**6, tally, stripped=True))
    assert len(found) == 2
    assert not any("sum of the parts" in d.text for d in found)
    assert tally.dropped == {"file is not Python of this version": 1}


def test_a_package_gives_at_most_its_part(package):
    first = next(iter(sources.package_code(["kite"], 10**6, Tally())))
    assert len(list(sources.package_code(["kite"], first.size_bytes, Tally()))) == 1


def test_wikipedia_pages_are_read_and_redirects_counted(tmp_path):
    folder = tmp_path / "test/test_data"
    folder.mkdir(parents=True)
    pages = "".join(
        f"<page><title>{title}</title><text xml:space='preserve'>{body}</text></page>"
        for title, body in [
            ("Kite", "A '''kite''' is a [[toy]] &lt;ref&gt;x&lt;/ref&gt;that flies."),
            ("Kites", "#REDIRECT [[Kite]]"),
            ("Wikipedia:Rules", "Rules."),
        ]
    )
    with bz2.open(folder / "enwiki-latest-pages-articles1-x.bz2", "wt") as file:
        file.write(pages)
    tally = Tally()
    (found,) = sources.wikipedia(tmp_path, 10**6, tally)
    assert (found.name, found.text) == ("Kite", "Kite\n\nA kite is a toy that flies.")
    assert tally.dropped == {"redirect page": 1, "page about Wikipedia itself": 1}


def test_service_help_takes_the_newest_version_and_turns_html_into_text(tmp_path):
    for day, words in (("2020-01-01", "Old."), ("2021-01-01", "Makes a <code>Kite</code>.")):
        folder = tmp_path / f"data/wind/{day}"
        folder.mkdir(parents=True)
        model = {"operations": {"CreateKite": {"documentation": f"<p>{words}</p>"}}}
        (folder / "service-2.json.gz").write_bytes(gzip.compress(json.dumps(model).encode()))
    found = {d.name: d.text for d in sources.service_pages(tmp_path, 10**6, Tally())}
    assert found["wind/CreateKite"] == "wind: create kite\n\nMakes a `Kite`."


def test_the_standard_library_is_grouped_into_repositories(tmp_path):
    (tmp_path / "json").mkdir()
    for name in ("json/__init__.py", "json/tool.py", "abc.py", "encodings.txt"):
        (tmp_path / name).write_text("x = 1\n")
    found = {d.name: d.source for d in sources.standard_library(tmp_path, 10**6, Tally())}
    assert found == {"json/__init__.py": "json", "json/tool.py": "json", "abc/abc.py": "abc"}


def test_the_licence_around_a_gutenberg_text_is_cut():
    text = "Licence.\n*** START OF THE EBOOK X ***\n\nOnce.\n\n*** END OF THE EBOOK X ***\nMore."
    assert sources.book(text) == "Once."
    assert sources.book("No frame.") == "No frame."


def test_a_source_whose_package_is_absent_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(packages, "folder", lambda name: None)
    lost = [s for s in sources.embedded() if s.read is None]
    assert {"wikipedia", "service_pages", "packages", "docstrings_sympy"} <= {s.name for s in lost}
    assert all(s.missing for s in lost)
    assert "pip install 'etude[demo]'" in next(s for s in lost if s.name == "news").missing[0]
