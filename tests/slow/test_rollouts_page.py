"""The page of rollouts in a real browser, where there is one: it shows, finds, and runs no text."""

import re
import shutil
import subprocess

import pytest

from etude.evals.rollouts.page import write_rollouts
from tests.evals.fake_rollouts import make

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["packed", "plain"])
def shown(request, tmp_path_factory):
    """The document of a page after its script ran, by the part of its address behind `#`."""
    folder = make(tmp_path_factory.mktemp("run"), steps=400)
    path, _ = write_rollouts(folder, plain=request.param)
    profile = tmp_path_factory.mktemp("profile")

    def dump(place: str = "", size: str = "1280,900") -> str:
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={profile}", f"--window-size={size}"]
        command += ["--virtual-time-budget=10000", f"{path.as_uri()}#{place}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=110).stdout

    return dump


def test_a_run_opens_with_its_first_rollout_and_few_rows_on_screen(shown):
    html = shown()
    assert "1,600 of 1,600 · reward 0.75 · 50 % with signal" in html
    assert 0 < html.count('class="item') < 40
    assert len(re.findall(r'class="t( own)?( half)?"', html)) == 9
    assert "<title>hacked" not in html and "<img" not in html


def test_a_link_leads_to_its_rollout_beside_the_others_of_its_problem(shown):
    html = shown("rollout=rl%2F7.0.1&group=1&colour=ratio")
    assert html.count('class="column') == 2 and 'class="column chosen"' in html
    assert "2 recorded attempts, mean reward 0.50" in html
    hues = re.findall(r'class="t own"[^>]*style="--s: ([\d.]+); --hue: var\(--(\w+)\)', html)
    assert ("0.000", "warm") in hues and any(hue == "cold" and s != "0.000" for s, hue in hues)


def test_a_link_to_nothing_says_so(shown):
    assert "No rollout rl/99999.0.0 is on this page." in shown("rollout=rl%2F99999.0.0")
