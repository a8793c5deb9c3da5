"""What more turns of interaction bring: accuracy by the number of turns allowed."""

from etude.evals.report import charts
from etude.evals.report.html import Html, tag
from etude.evals.report.record import Run

SHOWN = ("greedy", "sampled")


def section(run: Run) -> Html | None:
    """Accuracy by turns: one card per task, level and metric, one line a stage."""
    cards: dict[str, dict[str, list[charts.Point]]] = {}
    for result in run.evals:
        for row in result["rows"]:
            if "turns" in row and row["metric"] in SHOWN and row["value"] is not None:
                name = f"{row['task']} {row['level']}, {row['mode']}: {row['metric']} by turns"
                point = (float(row["turns"]), 100 * float(row["value"]))
                cards.setdefault(name, {}).setdefault(result["stage"], []).append(point)
    if not cards:
        return None
    text = (
        "Per cent of the same held-out problems, when an attempt is ended after so many turns of "
        "the model (GLM-4.5, arXiv:2508.06471, section 3.3, test-time scaling by turns). An attempt"
        " that would still have called a tool counts as unsolved."
    )
    ends = ("fewest turns", "most")
    drawn = [charts.fan(name, lines, told=_turns, ends=ends) for name, lines in cards.items()]
    return tag("div", tag("div", drawn, class_="grid"), tag("p", text, class_="note"))


def _turns(place: float) -> str:
    return f"{place:g} turns"
