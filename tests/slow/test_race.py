"""The race of objectives, tiny, from the command line: everything is run once and then kept."""

import json
from xml.etree import ElementTree

import pytest

from etude.bench.race import WIDTHS, main

pytestmark = pytest.mark.slow


def test_a_quick_race_runs_to_its_end_and_is_not_run_again(tmp_path, capsys):
    asked = [str(tmp_path), "--quick", "--seeds", "2"]
    main(asked)
    first = capsys.readouterr().out
    assert all(f" {name} " in first for name in WIDTHS)
    told = json.loads((tmp_path / "race.json").read_text())
    assert len(told["race"]) == 10 and len(told["fork"]) == 3
    for name in ("race.svg", "fork.svg"):
        ElementTree.parse(tmp_path / name)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").glob("*.json")}
    assert len(kept) == 20 + 10 + 6
    assert not [path for path in (tmp_path / "arms").iterdir() if path.is_dir()]
    main(asked)
    assert capsys.readouterr().out == first
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").glob("*.json")}
