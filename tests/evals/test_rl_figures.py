"""Figures of reinforcement learning: what the log has is drawn, under names that people read."""

import json

import pytest

from etude.evals.page import write_report
from etude.evals.report import lines, rl
from tests.evals.test_page import Reader


def drawn(tmp_path, *rows):
    """Captions of the section's plots, with their points by the name of the line."""
    (tmp_path / "run.json").write_text('{"recipe": "r", "stages": []}')
    told = [{"stage": "rl", "step": n} | row for n, row in enumerate(rows, start=1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    section = html.partition('<section id="rl">')[2].partition("</section>")[0]
    reader, found = Reader(section), {}
    captions = section.split("<figcaption><span>")[1:]
    plots = [a for _, a in reader.found if "data-points" in a]
    for caption, plot in zip(captions, plots, strict=True):
        points = json.loads(plot["data-points"])
        names = json.loads(plot.get("data-names", '[""]'))
        series = {
            name: [p[:2] for p in points if len(p) < 5 or p[4] == n] for n, name in enumerate(names)
        }
        found[caption.partition("<")[0]] = series
    return found


def test_only_what_the_log_has_is_drawn(tmp_path):
    rows = [{"reward": 0.5, "loss": 1.0, "clipped_low": 0.0, "clipped_high": 0.0}] * 2
    assert drawn(tmp_path, *rows) == {"Reward": {"": [[1, 0.5], [2, 0.5]]}}


def test_a_run_without_rewards_has_no_such_section(tmp_path):
    assert drawn(tmp_path, {"loss": 1.0, "length": 3.0, "entropy": 0.2}) == {}


def test_lines_of_one_figure_share_a_plot_and_prefixes_bring_all_their_names(tmp_path):
    row = {"reward": 0.5, "ratio": 1.0, "ratio_min": 0.5, "ratio_max": 2.0}
    row |= {"judge/agree": 0.75, "judge/decided": 0.5, "seconds_sampling": 2.0, "reward/sort": 0.5}
    found = drawn(tmp_path, row, row | {"judge/agree": None, "seconds_training": 1.0})
    assert found["Ratio"] == {
        "largest": [[1, 2], [2, 2]],
        "mean": [[1, 1], [2, 1]],
        "smallest": [[1, 0.5], [2, 0.5]],
    }
    assert found["Judge against truth"] == {
        "agrees": [[1, 0.75]],
        "decides": [[1, 0.5], [2, 0.5]],
    }
    assert found["Seconds by phase"]["training"] == [[1, 0], [2, 1]]
    assert found["Reward by environment: sort"] == {"": [[1, 0.5], [2, 0.5]]}


def test_the_causes_of_no_signal_are_told_as_finely_as_the_log_does(tmp_path):
    row = {"reward": 0.5, "all_right": 0.5, "all_wrong": 0.25}
    assert drawn(tmp_path, row)["Groups without signal"].keys() == {"all wrong", "all right"}
    row |= {"zero_std/right": 0.5, "zero_std/failed": 0.25}
    assert drawn(tmp_path, row)["Groups without signal"].keys() == {"right", "failed"}


def test_parts_of_a_whole_stand_on_each_other():
    series = {"low": [(1.0, 1.0), (2.0, 3.0)], "high": [(1.0, 2.0)]}
    reader = Reader(lines.stack("s", series))
    low, high = [a["d"] for name, a in reader.found if name == "path" and "area" in a["class"]]
    plot = next(a for _, a in reader.found if "data-points" in a)
    heights = {(p[4], p[0]): p[3] for p in json.loads(plot["data-points"])}
    assert heights[1, 1] == pytest.approx(heights[0, 2])  # 1 + 2 is as high as 3 + nothing
    assert high.split("L")[1] == low.split("L")[1]  # at 2 the upper part has no height


@pytest.mark.parametrize("draw", [lines.several, lines.stack])
def test_long_logs_are_thinned_and_many_lines_still_have_a_colour(draw):
    series = {f"line {n}": [(float(x), x % 7 + n) for x in range(5000)] for n in range(8)}
    reader = Reader(draw("s", series))
    plot = next(a for _, a in reader.found if "data-points" in a)
    assert len(json.loads(plot["data-points"])) <= 8 * lines.POINTS_MAX
    kinds = {a["class"] for name, a in reader.found if name == "i"}
    assert kinds == {f"s{n}" for n in range(lines.COLOURS)}


def test_no_two_figures_draw_the_same_number():
    names = [key for figure in rl.FIGURES for key in figure.keys]
    assert len(names) == len(set(names))
