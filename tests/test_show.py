"""The page of a model: exact, short, and made without torch."""

import subprocess
import sys

import pytest

from etude import show
from etude.models import glm45, nemotron3

PAGES = {size: show.page(size, glm45.arch(hf)) for size, hf in glm45.SIZES.items()}


def test_the_page_holds_the_published_counts():
    text = PAGES["full"]
    for number in ("358,337,791,296", "352,797,814,784", "3,988,069,632", "32,080,359,424"):
        assert number in text
    assert "65,708,032,000 + 4,521,984 x context" in text
    assert "368 KiB" in text


def test_layers_are_run_length_encoded():
    assert "layers 0-2   3 x" in PAGES["full"]
    assert "layers 3-91   89 x" in PAGES["full"]
    assert "layer 0   1 x" in PAGES["air"]
    assert len(PAGES["full"].splitlines()) < 70


def test_what_stood_before_is_not_repeated():
    assert PAGES["full"].count("op.q.weight") == 1
    assert "mixer  as in layers 0-2" in PAGES["full"]


def test_layers_that_alternate_are_told_by_the_number_of_the_first_of_their_kind():
    lines = show.page("x", nemotron3.arch(nemotron3.SIZES["nano"])).splitlines()
    at = lines.index("layers 6-51   in turn as layers")
    assert lines[at + 1].split() == [*("1 0 1 0 1 0 5 " * 4).split(), *lines[at + 1].split()[28:]]
    assert lines[at + 1].endswith(" 1 0 1 0 5 1 0 1 0 1 0 1 0 1")
    assert len(lines[at + 1].split()) == 46
    assert len(lines) < 70


def test_shapes_and_the_float32_buffer_are_shown():
    lines = PAGES["tiny"].splitlines()
    bias = next(line for line in lines if "router.bias" in line)
    assert bias.split() == ["op.router.bias", "16", "16", "float32", "buffer"]
    assert any("16 x 64 x 128" in line for line in lines)


def test_a_model_without_mtp_shows_none():
    assert "predicts the token after next" not in PAGES["mini"]
    assert "predicts the token after next" in PAGES["tiny"]


@pytest.mark.parametrize("size", PAGES)
def test_lines_fit_a_terminal(size):
    assert max(map(len, PAGES[size].splitlines())) <= 110


@pytest.mark.parametrize(
    ("number", "text"),
    [(512, "512"), (2_849_024, "2.85M"), (355e9, "355B"), (0.5, "0.5"), (1500, "1.5K")],
)
def test_numbers_are_short(number, text):
    assert show.short(number) == text


def test_bytes_have_binary_units():
    assert [show.size(n) for n in (12, 376_832, 2**50)] == ["12 B", "368 KiB", "1024 TiB"]


def test_no_torch_is_needed():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from etude import show\nfrom etude.models import glm45\n"
        "show.page('x', glm45.arch(glm45.SIZES['tiny']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
