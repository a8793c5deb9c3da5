"""The report: one file that asks for nothing, deaf to markup, there for unfinished runs too."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from etude.errors import EtudeError
from etude.evals.page import write_report
from etude.evals.report import charts
from etude.evals.report.figures import duration
from etude.evals.report.html import Html, tag
from tests.evals.fake_run import ATTACK, MEASURED, STAGES, make_run

ALONE = {"meta", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """Elements with their attributes and text; unbalanced markup is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def count(self, name: str, kind: str | None = None) -> int:
        return sum(n == name and (kind is None or a.get("class") == kind) for n, a in self.found)

    @property
    def text(self) -> str:
        return "\n".join(text for where, text in self.texts if where not in ("script", "style"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Reader:
    path = write_report(make_run(tmp_path_factory.mktemp("run") / "glm45_quick"))
    assert path.name == "report.html"
    return Reader(path.read_text(encoding="utf-8"))


def test_the_page_asks_for_nothing_and_forbids_itself_to(page):
    places = [
        v for _, a in page.found for k, v in a.items() if k in ("src", "href", "action", "data")
    ]
    assert all(place.startswith("#") or place == "data:," for place in places)
    whole = "".join(text for _, text in page.texts)
    assert not re.search(r"url\(|@import|https?://(?!arxiv)|fetch\(|XMLHttpRequest", whole)
    policy = next(
        a["content"] for _, a in page.found if a.get("http-equiv") == "Content-Security-Policy"
    )
    script = "".join(text for where, text in page.texts if where == "script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_markup_in_samples_and_recipe_is_shown_as_text(page):
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert not any(key.startswith("on") for _, a in page.found for key in a)
    assert page.text.count(ATTACK) == 4 * len(MEASURED) + 1


def test_markup_in_names_and_keys_is_shown_as_text(tmp_path):
    folder = make_run(tmp_path / "run")
    evil = f"\"'>{ATTACK}"
    about = {
        "recipe": evil,
        "about": evil,
        "seed": evil,
        "stages": [{"name": evil, "kind": evil, "seconds": 1, "status": evil}],
    }
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"stage": evil, "step": n, evil: n}) + "\n" for n in range(3))
    )
    cell = {
        "column": evil,
        "task": evil,
        "level": evil,
        "mode": evil,
        "metric": evil,
        "value": 1,
        "low": None,
        "high": None,
        "n": 1,
    }
    language = cell | {"column": "language", "baseline": {evil: 2.0}}
    (folder / "evals/model.json").write_text(json.dumps({"stage": evil, "rows": [cell, language]}))
    (folder / "corpus.json").write_text(
        json.dumps(
            {
                "domains": {evil: {}},
                "sources": {evil: {"dropped": {evil: 1}}},
                "licences": {evil: {}},
            }
        )
    )
    reader = Reader(write_report(folder).read_text(encoding="utf-8"))
    assert reader.count("script") == 1
    assert reader.count("img") == 0
    assert not any(key.startswith("on") for _, a in reader.found for key in a)
    assert reader.text.count(ATTACK) > 15


def test_every_stage_and_every_kind_of_figure_is_there(page):
    for stage, *_ in STAGES:
        assert stage in page.text
    for title in (
        "What each stage changed",
        "Bits per byte",
        "Curves",
        "Load of the experts",
        "Samples",
        "Data",
        "Recipe",
    ):
        assert title in page.text
    for text in (
        "Agentic",
        "Reasoning",
        "Coding",
        "gzip 3.6",
        "n-gram 3.1",
        "near duplicate",
        "PSF-2.0",
        "knows nothing of the world",
    ):
        assert text in page.text
    assert page.count("details", "thinking") == 2 * len(MEASURED)
    assert page.count("svg", "heat") == 2 * (len(STAGES) - 1)


def test_the_table_shows_the_change_from_the_first_stage_to_the_last(tmp_path):
    """By hand: 12.5 %, then 50 %, is +37.5 points; a row of one stage alone has no change."""
    (tmp_path / "evals").mkdir()
    (tmp_path / "run.json").write_text('{"recipe": "r", "stages": []}')
    row = {
        "column": "reasoning",
        "task": "var",
        "level": 1,
        "mode": "think",
        "metric": "greedy",
        "n": 8,
    }
    first = [
        row | {"value": 0.125, "low": 0.0, "high": 0.25},
        row | {"metric": "exact", "value": 0.5, "low": None, "high": None},
    ]
    last = [row | {"value": 0.5, "low": 0.3, "high": 0.7}]
    for n, (stage, rows) in enumerate((("zero", first), ("after", last))):
        (tmp_path / f"evals/{stage}.json").write_text(
            json.dumps({"stage": stage, "order": n, "rows": rows})
        )
    text = Reader(write_report(tmp_path).read_text(encoding="utf-8")).text.split("\n")
    assert text.index("zero") < text.index("after")
    assert text[text.index("12.5") :][:5] == ["12.5", "±12.5", "50.0", "±20.0", "+37.5"]
    assert text[text.index("exact") :][:4] == ["exact", "50.0", "·", "·"]


def test_figures_and_samples_of_another_recipe_are_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    told = json.loads((folder / "run.json").read_text())
    kept = {stage: ["now"] for stage in MEASURED[1:]}
    (folder / "run.json").write_text(json.dumps(told | {"figures": kept}))
    for path in (folder / "evals").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "now"}))
    text = Reader(write_report(folder).read_text(encoding="utf-8")).text
    assert text.count(ATTACK) == 4 * (len(MEASURED) - 1) + 1


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path):
    (tmp_path / "run.json").write_text(
        '{"recipe": "r", "stages": [{"name": "pretrain", "kind": "pretrain", "status": "waiting"}]}'
    )
    reader = Reader(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "0 of 1" in reader.text
    assert "waiting" in reader.text
    assert "Samples" not in reader.text


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_folder_that_is_no_run_is_named(content, tmp_path):
    if content:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(EtudeError, match=r"run\.json"):
        write_report(tmp_path)


def test_a_curve_keeps_its_ends_and_its_spikes_in_four_hundred_points():
    points = [(float(n), math.sin(n / 500) + 9 * (n == 1234)) for n in range(5001)]
    kept = charts.thin(points)
    assert len(kept) <= 400
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert points[1234] in kept
    assert kept == sorted(kept)
    assert charts.thin(points[:400]) == points[:400]


def test_curves_leave_out_what_is_not_a_number_and_draw_every_number(tmp_path):
    (tmp_path / "run.json").write_text('{"recipe": "r", "stages": []}')
    values = ["1.5", "null", "NaN", "Infinity", '"x"', "true", "2.5"]
    lines = [
        f'{{"stage": "s", "step": {n}, "loss": {v}, "new_key": 7}}' for n, v in enumerate(values)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    reader = Reader(write_report(tmp_path).read_text(encoding="utf-8"))
    plots = [json.loads(a["data-points"]) for _, a in reader.found if "data-points" in a]
    assert [[p[:2] for p in plot] for plot in plots] == [
        [[0, 1.5], [6, 2.5]],
        [[n, 7] for n in range(7)],
    ]


def test_a_smoothed_line_stays_on_a_straight_one():
    points = [(float(n), 2.0 * n) for n in range(200)]
    inner = charts.smooth(points)[10:-10]
    assert [y for _, y in inner] == pytest.approx([2 * x for x, _ in inner])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-7, 5e-7), (99, 101), (0, 9e12), (5, 5)])
def test_ticks_are_few_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-9 * abs(low) <= t <= high + 1e-9 * abs(high) for t in found)


def test_numbers_and_times_are_short():
    given = [0, 0.00012, 0.5, 12.345, 999, 12_345, 2_849_024, 358_337_791_296]
    assert [charts.short(n) for n in given] == [
        "0",
        "1.2e-4",
        "0.5",
        "12.3",
        "999",
        "12.3 k",
        "2.85 M",
        "358 G",
    ]
    assert [duration(s) for s in (3.4, 59.7, 692, 7260)] == [
        "3 s",
        "1 min 0 s",
        "11 min 32 s",
        "2 h 1 min",
    ]


def test_markup_is_made_only_by_tag():
    assert tag("p", "<b>", tag("i", "&"), [1, None], title='"', hidden=True) == (
        '<p title="&quot;" hidden>&lt;b&gt;<i>&amp;</i>1</p>'
    )
    assert isinstance(tag("path", d="M0 0"), Html)
