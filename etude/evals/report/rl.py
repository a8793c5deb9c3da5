"""How reinforcement learning went: reward, signal, clips, drift, age, time, judges, curricula.

Each figure takes its numbers from `metrics.jsonl` by name and is drawn where the log has them; a
name that ends in `/` or `_` takes all that begin with it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etude.evals.report import charts, lines
from etude.evals.report.html import Html, tag
from etude.evals.report.record import Line, Run, number


class Figure(NamedTuple):
    """One plot; of several with one name the first that has something to draw is shown.

    Attributes:
        name: its caption.
        keys: name in the log -> what the reader sees; "" = the name itself, or what is behind a
            prefix.
        stacked: whether the values are parts of a whole.
    """

    name: str
    keys: Mapping[str, str]
    stacked: bool = False


SILENT = "Groups without signal"
FIGURES = (
    Figure("Reward", {"reward": "", "reward_shaped": "trained on", "pass": "some attempt right"}),
    Figure("Reward by environment", {"reward/": ""}),
    Figure("Parts of the reward", {"term/": ""}),
    Figure(SILENT, {"zero_std/": ""}, True),
    Figure(SILENT, {"all_wrong": "all wrong", "all_right": "all right"}, True),
    Figure("Groups kept of those drawn", {"dynamic_kept": ""}),
    Figure("Tokens per attempt", {"length": "mean", "length_max": "longest"}),
    Figure("Turns", {"turns": ""}),
    Figure(
        "Attempts that went wrong",
        {"truncated": "", "failed": "", "repeated": "", "format_errors": "malformed"},
    ),
    Figure("Entropy", {"entropy": "of what was sampled", "entropy_exact": "exact"}),
    Figure(
        "Tokens clipped",
        {
            "clipped_low": "low",
            "clipped_high": "high",
            "clipped_dual": "dual",
            "corrected": "by the correction",
        },
    ),
    Figure("Ratio", {"ratio_max": "largest", "ratio": "mean", "ratio_min": "smallest"}),
    Figure("KL from the start of the update", {"k1": "", "k3": ""}),
    Figure("KL from the reference", {"kl": "k3", "kl_reward": "in the reward"}),
    Figure(
        "Sampler against trainer",
        {
            "logp_gap": "largest gap",
            "logp_gap_mean": "mean gap",
            "mismatch_k1": "k1",
            "mismatch_k3": "k3",
        },
    ),
    Figure(
        "Weights for that mismatch",
        {
            "mismatch_weight": "mean",
            "mismatch_effective": "effective share",
            "mismatch_outside": "outside of bounds",
            "mismatch_correlation": "correlation",
        },
    ),
    Figure("Age of the samples, in steps", {"age": "mean", "age_max": "oldest"}),
    Figure("Groups dropped for their age", {"aged_out": ""}),
    Figure("Seconds by phase", {"seconds_": ""}, True),
    Figure("Critic's loss", {"critic_loss": ""}),
    Figure("Variance the critic explains", {"critic_explained": ""}),
    Figure(
        "Judge against truth",
        {
            "judge/agree": "agrees",
            "judge/decided": "decides",
            "judge/accuracy": "when admitted",
            "judge/malformed": "malformed",
            "judge/bias_length": "with length",
        },
    ),
    Figure("Alarms about the judge", {"judge/alarms": ""}),
    Figure("Level of the curriculum", {"level/": ""}),
    Figure("Mixture of environments", {"share/": ""}, True),
    Figure("Output window, in tokens", {"window": ""}),
    Figure("Temperature", {"temperature": ""}),
    Figure("Pool by difficulty", {"pool/": ""}),
)
MARKS = ("reward", "mixed")  # a stage whose log has one of them learnt from rewards


def section(run: Run) -> Html | None:
    """The figures of every stage that learnt from rewards, the last one open."""
    stages = {stage: rows for stage, rows in run.metrics.items() if _learnt(rows)}
    parts = []
    for n, (stage, rows) in enumerate(stages.items(), start=1):
        drawn: dict[str, Html] = {}
        for figure in FIGURES:
            if figure.name not in drawn and (plot := draw(figure, rows)) is not None:
                drawn[figure.name] = plot
        title = tag("summary", tag("b", stage), tag("small", f"{len(rows)} steps"))
        grid = tag("div", list(drawn.values()), class_="grid")
        parts.append(tag("details", title, grid, open=n == len(stages)))
    if not parts:
        return None
    text = (
        "Groups without signal have equal rewards, and teach nothing. A ratio is that of a token's "
        "probability now to the one at the start of the update. The attempts themselves: "
    )
    note = tag("p", text, tag("code", "etude rollouts"), ".", class_="note")
    return tag("div", note, parts)


def draw(figure: Figure, rows: Sequence[Line]) -> Html | None:
    """One plot of what the log has of it; None where it has nothing but zeros, or nothing."""
    series: dict[str, list[charts.Point]] = {}
    for name, told in _found(figure.keys, rows).items():
        points = [
            (float(row["step"]), float(row[name]))
            for row in rows
            if number(row.get(name)) and number(row.get("step"))
        ]
        if points:
            series.setdefault(told, points)
    if not any(y for points in series.values() for _, y in points):
        return None
    if len(series) == 1 and not figure.stacked:
        ((told, points),) = series.items()
        whole = told in figure.keys or told == "mean"
        return charts.curve(figure.name if whole else f"{figure.name}: {told}", points)
    kind = lines.stack if figure.stacked else lines.several
    return kind(figure.name, series)


def _found(keys: Mapping[str, str], rows: Sequence[Line]) -> dict[str, str]:
    """Return the names in the log that a figure draws, with what the reader sees."""
    logged = sorted({name for row in rows for name in row})
    found: dict[str, str] = {}
    for key, told in keys.items():
        if key.endswith(("/", "_")):
            found |= {name: name[len(key) :] for name in logged if name.startswith(key)}
        elif key in logged:
            found[key] = told or key.replace("_", " ")
    return found


def _learnt(rows: Sequence[Line]) -> bool:
    return any(number(row.get(mark)) for row in rows for mark in MARKS)
