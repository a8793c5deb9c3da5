"""`report.html`: everything a run found out, on one page that needs nothing but a browser.

The page makes no request, and a policy inside it forbids any; its one script is named there by
hash, so that text of a model or a corpus can never run as another.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.evals.report import course, figures, ladder, lengths, reading, rl, speed, turns
from etude.evals.report.charts import short
from etude.evals.report.html import Html, tag
from etude.evals.report.record import Run, read
from etude.files import atomic

ASSETS = Path(__file__).parent / "report" / "assets"


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder from what the run has recorded so far.

    Returns:
        The file.

    Raises:
        EtudeError: the folder holds no `run.json`, a file in it is broken, or it cannot be written.
    """
    run = read(Path(folder))
    path = Path(folder) / "report.html"
    with atomic(path, "w") as file:
        file.write(page(run))
    return path


def page(run: Run) -> str:
    """The whole page of a run."""
    parts = {
        "before-after": ("What each stage changed", figures.table(run)),
        "language": ("Bits per byte", figures.language(run)),
        "turns": ("More turns", turns.section(run)),
        "lengths": ("Far into a text", lengths.section(run)),
        "speed": ("Writing behind a context", speed.section(run)),
        "ladder": ("Loss against compute", ladder.section(run)),
        "examples": ("Examples in the prompt", ladder.examples(run)),
        "time": ("Where the time went", figures.time(run)),
        "rl": ("Reinforcement learning", rl.section(run)),
        "curves": ("Curves", course.curves(run)),
        "experts": ("Load of the experts", course.experts(run)),
        "samples": ("Samples", reading.samples(run)),
        "corpus": ("Data", reading.corpus(run)),
        "recipe": ("Recipe", reading.recipe(run)),
    }
    shown = {key: part for key, part in parts.items() if part[1]}
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    body = [
        _head(run),
        tag("nav", [tag("a", title, href=f"#{key}") for key, (title, _) in shown.items()]),
        tag("main", [_section(key, title, part) for key, (title, part) in shown.items()]),
        tag("footer", "Made by etude. This file is complete: it loads nothing and sends nothing."),
        tag("script", Html(script)),
    ]
    return f"<!doctype html>\n{tag('html', _meta(run, script), tag('body', body), lang='en')}\n"


def _meta(run: Run, script: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{run.name} · etude"),
        tag("style", Html(style)),
    )


def _head(run: Run) -> Html:
    done = sum(stage.get("status", "done") == "done" for stage in run.stages)
    seconds = sum(stage.get("seconds") or 0 for stage in run.stages)
    tokens = sum(stage.get("tokens") or 0 for stage in run.stages)
    facts = {
        "parameters": short(run.size["all"]) if run.size else "",
        "active per token": short(run.size["active"]) if run.size else "",
        "stages done": f"{done} of {len(run.stages)}",
        "time": figures.duration(seconds),
        "tokens trained": short(tokens) if tokens else "",
        "seed": "" if run.about.get("seed") is None else str(run.about["seed"]),
    }
    return tag(
        "header",
        tag("p", "etude run", class_="eyebrow"),
        tag(
            "button",
            "◐",
            id="theme",
            type="button",
            title="light or dark",
            aria_label="light or dark",
        ),
        tag("h1", run.name),
        tag("p", run.about["about"], class_="lead") if run.about.get("about") else None,
        _facts(facts),
        tag("p", _remark(run), class_="remark"),
    )


def _facts(facts: Mapping[str, str]) -> Html:
    return tag(
        "dl",
        [tag("div", tag("dt", k), tag("dd", v)) for k, v in facts.items() if v],
        class_="facts",
    )


def _remark(run: Run) -> list[Any]:
    size = f" with {short(run.size['all'])} parameters" if run.size else ""
    return [
        tag("b", "What not to expect. "),
        f"A model{size} trained for minutes knows nothing of the world: it cannot answer questions "
        "about it, and most of its free text is noise. What this page shows is narrower, and real: "
        "which skill each stage of the method adds, on problems that were kept out of training.",
    ]


def _section(key: str, title: str, part: Html | None) -> Html:
    return tag("section", tag("h2", title), part, id=key)
