"""What there is to read: answers, the corpus, the recipe."""

from collections.abc import Sequence

from etude.evals.report.html import Html, tag, wide_table
from etude.evals.report.record import Line, Run, number

SAMPLES_MAX = 24  # per stage
LETTERS_MAX = 4000  # of one text


def samples(run: Run) -> Html | None:
    """Answers to read, newest stage open."""
    parts = []
    last = next(reversed(run.samples), None)
    for stage, rows in run.samples.items():
        cards = [_sample(row) for row in rows[:SAMPLES_MAX]]
        right = sum((row.get("score") or 0) >= 1 for row in rows[:SAMPLES_MAX])
        title = tag("summary", tag("b", stage), tag("small", f"{right} of {len(cards)} right"))
        parts.append(tag("details", title, tag("div", cards, class_="cards"), open=stage == last))
    return tag("div", parts, class_="samples") if parts else None


def _sample(row: Line) -> Html:
    level = "" if row.get("level") is None else f" {row['level']}"
    limit = f", turns {row['turns']}" if "turns" in row else ""
    mode, score = row.get("mode"), row.get("score")
    return tag(
        "article",
        tag(
            "header",
            tag("span", f"{row.get('task', '')}{level}{limit}"),
            tag("span", mode, class_=f"mode {mode}") if mode else None,
            _badge(score) if number(score) else None,
        ),
        tag("pre", _cut(row.get("prompt")), class_="prompt"),
        _thinking(row["reasoning"]) if row.get("reasoning") else None,
        [tag("pre", _cut(call), class_="call") for call in row.get("calls") or ()],
        tag("pre", _cut(row.get("reply")) or "(nothing)", class_="reply"),
        _expected(row.get("answer")) if number(score) and score < 1 else None,
    )


def _badge(score: float) -> Html:
    if 0 < score < 1:
        return tag("span", f"{score:.2f}", class_="badge part")
    word = "right" if score >= 1 else "wrong"
    return tag("span", word, class_=f"badge {word}")


def _thinking(text: object) -> Html:
    return tag("details", tag("summary", "thinking"), tag("pre", _cut(text)), class_="thinking")


def _expected(answer: object) -> Html | None:
    if answer in (None, ""):
        return None
    return tag("p", "expected: ", tag("code", _cut(answer)), class_="answer")


def _cut(text: object) -> str:
    whole = "" if text is None else text if isinstance(text, str) else str(text)
    return (
        whole if len(whole) <= LETTERS_MAX else f"{whole[:LETTERS_MAX]} … ({len(whole):,} letters)"
    )


def corpus(run: Run) -> Html | None:
    """Domains, licences and what was dropped, from the corpus' manifest."""
    domains = run.corpus.get("domains")
    if not isinstance(domains, dict) or not domains:
        return None
    mixture = run.corpus.get("mixture", {})
    names = ("domain", "share", "documents", "MB", "held out")
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", f"{100 * mixture[name]:.0f} %" if name in mixture else "·"),
            [tag("td", text) for text in _domain(row)],
        )
        for name, row in domains.items()
    ]
    head = tag("tr", [tag("th", text, scope="col") for text in names])
    return tag(
        "div",
        wide_table(head, rows, "plain"),
        tag("div", _dropped(run.corpus), _licences(run.corpus), class_="grid wide"),
    )


def _domain(row: Line) -> tuple[str, str, str]:
    size = row.get("train_bytes")
    return (
        f"{row.get('train_documents', 0):,}",
        f"{size / 1e6:.2f}" if number(size) else "·",
        f"{row.get('held_out_documents', 0):,}",
    )


def _dropped(corpus: Line) -> Html | None:
    """Drop reasons over all sources, most frequent first."""
    reasons: dict[str, int] = {}
    for source in corpus.get("sources", {}).values():
        for reason, count in source.get("dropped", {}).items():
            reasons[reason] = reasons.get(reason, 0) + count
    rows = sorted(reasons.items(), key=lambda item: -item[1])
    return _pairs("Documents left out, and why", [(name, f"{count:,}") for name, count in rows])


def _licences(corpus: Line) -> Html | None:
    found = corpus.get("licences", {})
    return _pairs(
        "Licences, as stated by their packages",
        [(n, f"{r.get('documents', 0):,}") for n, r in found.items()],
    )


def _pairs(title: str, rows: Sequence[tuple[str, str]]) -> Html | None:
    if not rows:
        return None
    body = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows]
    return tag(
        "details",
        tag("summary", tag("b", title), tag("small", str(len(rows)))),
        tag("table", tag("tbody", body), class_="plain"),
    )


def recipe(run: Run) -> Html | None:
    """The resolved recipe, word for word."""
    if not run.recipe:
        return None
    lines = run.recipe.count("\n")
    return tag(
        "details",
        tag("summary", tag("b", "recipe.yaml"), tag("small", f"{lines} lines")),
        tag("pre", run.recipe, class_="yaml"),
    )
