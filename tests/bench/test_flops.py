"""The report's claim against DeepSeek-R1, in the figure's counting and in three others."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from etude.bench import flops
from etude.models import kimi_k2, minimax_m1

WANTED = {  # worked out from the published dimensions; columns as in `flops.COLUMNS`
    32_768: (0.584, 0.645, 0.445, 0.284),
    65_536: (0.385, 0.445, 0.290, 0.167),
    100_000: (0.292, 0.344, 0.222, 0.120),
    131_072: (0.244, 0.290, 0.189, 0.098),
}


@pytest.mark.parametrize("length", list(WANTED))
def test_the_ratio_to_deepseek_r1_is_that_of_the_published_dimensions(length):
    found = flops.ratios(length)
    assert list(found) == list(flops.COLUMNS)
    assert [round(ratio, 3) for ratio in found.values()] == list(WANTED[length])


def test_the_printed_curves_are_those_recovered_from_the_figure():
    """Fitted to the vector data of figure 1: A to 11 digits, Q exactly."""
    assert flops.printed_r1() == flops.Cost(75_414_503_424, 3_497_984)
    assert flops.printed_qwen() == flops.Cost(43_036_704_768, 2_310_144)
    assert flops.printed_m1() == flops.Cost(104_530_968_576, 196_608)


def test_the_descriptions_count_what_one_can_count_by_hand():
    described = kimi_k2.arch(kimi_k2.SIZES["deepseek_v3"])
    assert flops.counted(described) == flops.Cost(73_249_193_984, 61 * 128 * (192 + 128))
    assert flops.counted(described, absorbed=True).pair == 61 * 128 * (576 + 512)
    m1 = flops.counted(minimax_m1.arch(minimax_m1.SIZES["full"]))
    assert m1 == flops.Cost(94_638_702_592, 10 * 64 * (128 + 128))


def test_both_cost_the_same_near_eight_thousand_tokens():
    assert flops.ratios(8192)["by figure"] == pytest.approx(1.02, abs=0.01)
    assert flops.ratios(8192)["cumulative"] == pytest.approx(1.02, abs=0.01)


def test_the_table_is_printed_and_drawn(tmp_path, capsys):
    flops.run(out=tmp_path)
    assert (
        "   65,536        0.385        0.445        0.290        0.167" in capsys.readouterr().out
    )
    assert json.loads((tmp_path / "flops.json").read_text())["100000"]["by figure"] > 0.29
    root = ElementTree.parse(tmp_path / "flops.svg").getroot()
    assert len([e for e in root if e.tag.endswith("path")]) == 4
    flops.run(as_json=True)
    assert set(json.loads(capsys.readouterr().out)) == {str(n) for n in flops.LENGTHS}
