"""The quick recipe of Nemotron 3, whole: every stage runs, learns, and writes its figures."""

import pytest

from etude.evals.figures import Key, load
from etude.evals.page import write_report
from etude.run import train
from etude.train.log import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_every_stage_of_the_quick_recipe_runs_and_learns(tmp_path):
    folder = train("nemotron3_quick", ["threads=1"], out=tmp_path / "run")
    figures = load(folder)

    def value(stage, column, task, level, mode, metric):
        found = figures.cell(Key(column, task, level, mode, metric), stage)
        assert found is not None
        return found.value

    for domain in ("general", "code", "math", "traces"):
        text = ("language", domain, None, "-", "bpb")
        assert value("pretrain", *text) < value("model", *text) - 1  # measured 1.7 to 5.6
    long = ("language", "document_qa", None, "-", "bpb")
    assert value("long_context", *long) < value("pretrain", *long)  # 2.59 and 2.75
    solved = ("reasoning", "var", 0, "think", "sampled")
    assert value("sft_by_conversation", *solved) > value("long_context", *solved)
    # of the context a state of fixed size is kept, beside one layer's keys and values
    near, far = (value("sft", "speed", "decode", n, "-", "MB kept") for n in (256, 2048))
    assert far - near == pytest.approx((2048 - 256) * 2 * 2 * 32 * 4 / 1e6)
    lines = list(read(folder / "metrics.jsonl"))
    text = ("pretrain", "long_context", "sft", "sft_by_conversation")
    assert {line["stage"] for line in lines} >= {*text}
    learnt = [line for line in lines if line["stage"] in text and "loss" in line]
    assert all("mtp_loss" in line for line in learnt)
    assert "tok/s" in write_report(folder).read_text()
