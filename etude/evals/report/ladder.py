"""Several sizes side by side: loss against compute, and what examples in the prompt are worth."""

import math
from collections.abc import Mapping, Sequence

from etude.evals import ladder
from etude.evals.report import charts
from etude.evals.report.html import Html, tag, wide_table
from etude.evals.report.record import Run


def section(run: Run) -> Html | None:
    """Loss against compute of every size, with the laws fitted through it."""
    rungs = ladder.rungs(run.evals)
    if not rungs:
        return None
    laws = ladder.laws(rungs)
    span = [rung.compute for rung in rungs]
    points = [(math.log10(rung.compute), math.log10(rung.loss)) for rung in rungs]
    lines = [_course(law, min(span), max(span)) for law in laws.values()]
    figure = charts.scatter(
        "loss in nats per token against FLOPs, both axes logarithmic",
        points,
        lines,
        labels=[f"{rung.stage}: {rung.loss:.3f} at {rung.compute:.1e}" for rung in rungs],
        note=f"C^-{laws['no floor'].exponent:.3f}" if laws else "",
    )
    head = ("size", "parameters", "tokens", "FLOPs", "nats per token")
    body = [
        tag(
            "tr",
            tag("th", rung.stage, scope="row"),
            tag("td", f"{rung.parameters:,}"),
            tag("td", f"{rung.tokens:,}"),
            tag("td", f"{rung.compute:.1e}"),
            tag("td", f"{rung.loss:.3f}"),
        )
        for rung in rungs
    ]
    text = (
        "C = 6 N D with all parameters N and trained tokens D; held-out documents. Without a floor "
        "the interval is Student's of the slope, with one the jackknife's over sizes."
    )
    return tag(
        "div",
        figure,
        [tag("p", ladder.written(name, law)) for name, law in laws.items()],
        wide_table(tag("tr", [tag("th", t, scope="col") for t in head]), body, "plain"),
        tag("p", text, class_="note"),
    )


def _course(law: ladder.Law, first: float, last: float, steps: int = 24) -> list[charts.Point]:
    """A law as a line in logarithms."""
    low, high = math.log10(first), math.log10(last)
    places = [low + (high - low) * n / steps for n in range(steps + 1)]
    return [(x, math.log10(law.loss(10**x))) for x in places]


def examples(run: Run) -> Html | None:
    """Accuracy by the number of examples in the prompt, one line a stage, the first ones pale."""
    found: dict[tuple[str, str], dict[str, list[charts.Point]]] = {}
    for result in run.evals:
        for row in result["rows"]:
            if row["column"] == "few-shot" and row["value"] is not None:
                lines = found.setdefault((row["task"], row["metric"]), {})
                place = math.log2(1 + row["shots"])
                lines.setdefault(result["stage"], []).append((place, 100 * row["value"]))
    several = {key: lines for key, lines in found.items() if _varied(lines)}
    if not several:
        return None
    ends = ("fewest examples", "most")
    cards = [
        charts.fan(f"{task}, {metric}", lines, told=_examples, ends=ends)
        for (task, metric), lines in several.items()
    ]
    text = (
        "Per cent right of held-out questions against the examples in the prompt (0, 1, and more; "
        "the axis is log2 of one more). exact: written to the letter. per token: the choice with "
        "the highest mean log-probability. over base: log P in the context less log P outside it."
    )
    return tag("div", tag("div", cards, class_="grid"), tag("p", text, class_="note"))


def _examples(place: float) -> str:
    return f"{2**place - 1:g} examples"


def _varied(lines: Mapping[str, Sequence[charts.Point]]) -> bool:
    """Whether there is anything to draw: two numbers of examples, and not only zeros."""
    return any(len(p) > 1 for p in lines.values()) and any(y for p in lines.values() for _, y in p)
