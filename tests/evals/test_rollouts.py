"""The page of rollouts: whole and offline, deaf to markup, honest about what could not be read."""

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

from etude.errors import EtudeError
from etude.evals.rollouts import page as pages
from etude.evals.rollouts.page import pack, write_rollouts
from etude.evals.rollouts.read import read
from tests.evals.fake_rollouts import ATTACK, PIECES, line, make, older, patch, write
from tests.evals.test_page import Reader

FIELDS = "stage task key group step level status turns advantage reward raw tokens age".split()


def data_of(html: str) -> list[str]:
    """The lines of the data block, as the page's script unpacks them."""
    kind, text = re.search(r'<script id="data" type="([^"]+)">(.*?)</script>', html, re.S).groups()
    if kind == "application/gzip":
        text = gzip.decompress(base64.b64decode(text)).decode()
    return text.split("\n")


@pytest.fixture(params=[False, True], ids=["packed", "plain"])
def html(request, tmp_path) -> str:
    path, _ = write_rollouts(make(tmp_path / "run"), plain=request.param)
    assert path == tmp_path / "run/rollouts.html"
    return path.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_and_forbids_itself_to(html):
    reader = Reader(html)
    places = [v for _, a in reader.found for k, v in a.items() if k in ("src", "href", "action")]
    assert places == ["data:,"]
    script = [text for where, text in reader.texts if where == "script"][-1]
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?://|innerHTML|eval\(", script)
    policy = next(a["content"] for _, a in reader.found if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_no_text_of_a_rollout_becomes_markup(html):
    reader = Reader(html)
    assert reader.count("script") == 2 and reader.count("img") == 0  # the data, and the page's own
    assert not any(key.startswith("on") for _, a in reader.found for key in a)
    assert ATTACK in "".join(piece for _, piece in json.loads(data_of(html)[0])["pieces"])


def test_markup_in_the_names_of_run_and_stage_is_shown_as_text(tmp_path):
    folder = make(tmp_path / "<img src=x>")
    (folder / "rollouts/rl.jsonl").rename(folder / "rollouts/<b>.jsonl")
    reader = Reader(write_rollouts(folder)[0].read_text(encoding="utf-8"))
    assert reader.count("img") == reader.count("b") == 0
    assert "<img src=x>" in reader.text and "<b>" in reader.text


def test_the_scripts_colours_and_list_read_what_is_packed(html):
    """The fields of the list stand in `data.js` too; both must be of one mind."""
    script = (pages.ASSETS / "data.js").read_text()
    assert json.loads(re.search(r"const FIELDS = (\[.*?\]);", script).group(1)) == FIELDS
    head, *bodies = map(json.loads, data_of(html))
    rows = [dict(zip(FIELDS, row, strict=True)) for row in head["rows"]]
    assert len(rows) == len(bodies) == 12
    assert head["stages"] == ["rl"] and head["tasks"] == [f"sort{ATTACK}"]
    first = {"stage": 0, "task": 0, "key": "0.0.0", "group": "0.0", "step": 0, "level": "0"}
    first |= {"status": "completed", "turns": 2, "advantage": 1500, "reward": 1.0, "raw": 1.0}
    assert rows[0] == first | {"tokens": 5, "age": 0}
    assert {row["status"] for row in rows} == {"completed", "truncated"}
    body = bodies[0]
    assert [head["pieces"][n][1] for n in body["p"]] == [
        PIECES[n] for n in (0, 1, 2, 3, 4, 5, 6, 4, 3)
    ]
    assert body["m"] == [[2, 5], [7, 9]]
    assert body["l"] == [-100, -200, -2500, 0, 0]
    assert body["r"] == [0, 2500, -5000, 0, 0] and body["c"] == [1, 2] and body["e"] == [100] * 5
    assert body["a"] == 1500 and "r" not in bodies[2]


def test_scales_end_where_few_values_lie_beyond():
    assert pages._end([]) == pages._end([0.0, 0.0]) == 0
    assert pages._end([0.01 * n for n in range(101)]) == pytest.approx(0.98)
    assert pages._end([0.0] * 999 + [0.4]) == 0.4  # hardly anything moved, and that shows


def test_what_is_not_finite_is_nothing_rather_than_no_page(tmp_path):
    row = line(0, 0, 0, 1.0, logp=[-0.1, float("nan"), float("-inf"), -1.0, -1.0])
    write(tmp_path, "rl", [row | {"info": {"x": float("nan")}}])
    body = json.loads(pack(read(tmp_path)).split("\n")[1], parse_constant=pytest.fail)
    assert body["l"] == [-100, None, None, -1000, -1000] and body["i"] == {"x": None}


DAMAGED = {
    "cut": '{"step": 3, "cut',
    "no object": "5",
    "no attempt": '{"step": 1}',
    "a mask behind the end": line(9, 0, 0, 1.0, mask=[[2, 99]]),
    "a mask that turns back": line(9, 0, 0, 1.0, mask=[[5, 7], [2, 5]]),
    "too few numbers": line(9, 0, 0, 1.0, logp=[0.0]),
    "no numbers": line(9, 0, 0, 1.0, logp=["<b>"] * 5),
    "pieces of other tokens": line(9, 0, 0, 1.0, pieces=["a"]),
    "an update of nothing": patch(9, 9, 9),
    "an update of other tokens": patch(0, 0, 0, ratio=[1.0]),
    "a clip elsewhere": patch(0, 0, 0, clipped=[5]),
}


@pytest.mark.parametrize("bad", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_left_out_and_counted(bad, tmp_path):
    write(tmp_path, "rl", [line(0, 0, 0, 1.0), bad, line(0, 0, 1, 0.0)])
    found = read(tmp_path)
    assert [row["key"] for row in found.stages["rl"]] == ["0.0.0", "0.0.1"]
    assert found.damaged == {"rl": 1}
    html = pages.page("run", found)
    assert "2 recorded rollouts · 1 damaged line left out" in Reader(html).text


def test_lines_of_before_tokens_were_recorded_still_open(tmp_path):
    write(tmp_path, "rl", [older(0, 1.0), older(0, 0.0), older(1, 1.0)])
    rows = read(tmp_path).stages["rl"]
    assert [row["key"] for row in rows] == ["old0", "old1", "old2"]
    assert rows[0]["group"] == rows[1]["group"] != rows[2]["group"]
    head, body, *_ = map(json.loads, pack(read(tmp_path)).split("\n"))
    assert [head["pieces"][n][1] for n in body["p"]] == [f"reverse: a b{ATTACK}", "b a"]


def test_the_last_update_of_an_attempt_is_shown_and_all_are_counted(tmp_path):
    again = patch(0, 0, 0, ratio=[2.0] * 5, clipped=[], update=5)
    write(tmp_path, "rl", [line(0, 0, 0, 1.0), patch(0, 0, 0), again])
    [row] = read(tmp_path).stages["rl"]
    assert (row["updates"], row["update"], row["ratio"], row["clipped"]) == (2, 5, [2.0] * 5, [])


def test_a_limit_keeps_whole_groups_from_beginning_to_end(tmp_path):
    found = read(make(tmp_path, steps=50), limit=20)
    rows = found.stages["rl"]
    assert (found.written, len(rows)) == (200, 20)
    assert rows[0]["step"] == 0 and rows[-1]["step"] >= 40
    groups = [row["group"] for row in rows]
    assert all(groups.count(group) == 2 for group in groups)


def test_curves_on_top_tell_of_all_attempts_where_the_log_does(tmp_path):
    folder = make(tmp_path)
    told = lambda: Reader(write_rollouts(folder)[0].read_text(encoding="utf-8"))  # noqa: E731
    reader = told()
    assert "recorded reward · rl" in reader.text
    plots = [json.loads(a["data-points"]) for _, a in reader.found if "data-points" in a]
    assert [[p[1] for p in plot] for plot in plots] == [[0.75] * 3, [0.5] * 3]
    logged = [{"stage": "rl", "step": n, "reward": 0.25, "mixed": 1.0} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    reader = told()
    assert "recorded reward" not in reader.text
    plots = [json.loads(a["data-points"]) for _, a in reader.found if "data-points" in a]
    assert [[p[1] for p in plot] for plot in plots] == [[0.25] * 2, [1.0] * 2]


def test_stages_stand_in_the_order_of_the_run(tmp_path):
    for stage in ("a", "z"):
        write(tmp_path, stage, [line(0, 0, 0, 1.0)])
    (tmp_path / "run.json").write_text('{"stages": [{"name": "z"}, {"name": "a"}]}')
    assert list(read(tmp_path).stages) == ["z", "a"]
    assert list(read(tmp_path, stage="a").stages) == ["a"]
    (tmp_path / "run.json").write_text("{")
    assert list(read(tmp_path).stages) == ["a", "z"]


def test_what_cannot_be_shown_is_told_in_one_line(tmp_path):
    with pytest.raises(EtudeError, match="no such run"):
        read(tmp_path / "nowhere")
    with pytest.raises(EtudeError, match="holds no rollouts"):
        read(tmp_path)
    write(tmp_path, "rl_hard", ["{"])
    with pytest.raises(EtudeError, match="did you mean rl_hard"):
        read(tmp_path, stage="rl_hrd")
    with pytest.raises(EtudeError, match="no whole line, 1 damaged"):
        read(tmp_path)


@pytest.mark.parametrize("name", pages.SCRIPTS)
def test_the_scripts_are_short(name):
    assert Path(pages.ASSETS / name).read_text().count("\n") < 400
