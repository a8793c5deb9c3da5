"""The pipeline in memory: read, extract, filter, score, remove duplicates, mix, hold out."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from etude.data import clean, contamination, dedup, mix, quality
from etude.data.documents import Document, Tally
from etude.data.sources import Source
from etude.errors import EtudeError

Progress = Callable[[str, int, int], None]
Item = tuple[Source, Document]
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number that decides what the corpus holds.

    Args:
        bytes: text to read, after extraction and before any filter.
        longest: longest prose document in characters, so that a small corpus holds many; 0: none.
        shares: share of the bytes of each domain, renormalised over what can be had.
        held_out: share of the documents (for code: packages) never trained on.
        keep: what a quality score decides: "buckets", or "pareto", a draw that noisy documents must
            win while reference ones stay.
        buckets: quality buckets and how often each is seen.
        pareto: the draw.
        code_copies: copies of code by tier: low, middle, high.
        near: near-duplicate rule.
        decontaminate: cut what training documents share with held-out ones.
        shared: what counts as shared.
    """

    bytes: int
    longest: int = 0
    shares: dict[str, float] = field(default_factory=lambda: dict(mix.SHARES))
    held_out: float = 0.06
    keep: Literal["buckets", "pareto"] = "buckets"
    buckets: quality.Buckets = field(default_factory=quality.Buckets)
    pareto: quality.Pareto = field(default_factory=quality.Pareto)
    code_copies: tuple[int, int, int] = (0, 1, 2)
    near: dedup.Near = field(default_factory=dedup.Near)
    decontaminate: bool = False
    shared: contamination.Rule = field(default_factory=contamination.Rule)


def assemble(
    recipe: Recipe, sources: list[Source], progress: Progress
) -> tuple[list[tuple[str, Document]], dict]:
    """Run the whole pipeline in memory; return (split, document) pairs and the manifest.

    Raises:
        EtudeError: no source can be had, or none gave a document that passed.
    """
    names = [s.name for s in sources]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise EtudeError(f"corpus source {twice}", "named twice", "names that differ")
    tallies = {s.name: Tally() for s in sources}
    items, rejects = _gather(recipe, sources, tallies, progress)
    if not items:
        raise EtudeError(
            "corpus", "no source gave a document", "", "pip install 'etude[demo]'", code=1
        )
    items, graded = _grade(recipe, items, rejects, tallies, progress)
    placed = _unique(recipe, items, tallies, progress)
    told: dict[str, Any] = {"buckets": [], "kept": []} | graded
    if recipe.decontaminate:
        placed, counts = _decontaminated(recipe, placed, tallies, progress)
        told["contamination"] = counts.as_dict()
    pairs = [(split, document) for split, (_, document) in placed]
    return pairs, _manifest(recipe, sources, pairs, tallies) | told


def _gather(
    recipe: Recipe, sources: list[Source], tallies: dict[str, Tally], progress: Progress
) -> tuple[list[Item], list[str]]:
    """Read every source up to its budget; what one cannot give, the others of its domain do."""
    wanted = mix.budgets(sources, recipe.bytes, recipe.shares)
    live = {s.name: s.read(wanted[s.name], tallies[s.name]) for s in sources if s.read}
    boilerplate = {name: clean.Boilerplate() for name in live}
    items: list[Item] = []
    rejects: list[str] = []
    done = 0
    for _ in range(
        3
    ):  # rounds: after the third a domain stays short, and its manifest row shows it
        for source in (s for s in sources if s.name in live):
            if tallies[source.name].read_bytes >= wanted[source.name]:
                continue
            tally, stop = tallies[source.name], wanted[source.name]
            for document in _until(live[source.name], tally, stop):
                good, problem = _cleaned(document, source, recipe, boilerplate[source.name], tally)
                tally.drop(problem, int(bool(problem)))
                if not problem:
                    items.append((source, good))
                elif source.quality and len(good.text) > 200 and len(rejects) < 2_000:
                    rejects.append(good.text)
            if tally.read_bytes < stop:
                del live[source.name]
            done = sum(t.read_bytes for t in tallies.values())
            progress(f"reading {source.name}", min(done, recipe.bytes), recipe.bytes)
        wanted = _refill(recipe, sources, tallies, live, wanted)
    return items, rejects


def _until(documents: Iterator[Document], tally: Tally, stop: int) -> Iterator[Document]:
    while tally.read_bytes < stop:
        document = next(documents, None)
        if document is None:
            return
        tally.read += 1
        yield document


def _cleaned(
    document: Document, source: Source, recipe: Recipe, boilerplate: clean.Boilerplate, tally: Tally
) -> tuple[Document, str]:
    """Return the document with its text cleaned, and why it is refused ("" if it is not)."""
    text = clean.normalise(document.text)
    if recipe.longest and source.filter != "code" and len(text) > recipe.longest:
        text = text[: text.rfind("\n\n", recipe.longest // 2, recipe.longest)].rstrip()
        tally.remove("end of a text over the length limit")
    tally.read_bytes += len(text.encode())
    check, whole = clean.PROBLEMS[source.filter], text
    if source.filter == "prose":
        text, cut = boilerplate(text)
        tally.remove("paragraph seen before in this source", cut)
    problem = check(text)
    if problem and text != whole and not check(whole):
        problem = "little but paragraphs seen before"
    return replace(document, text=text), problem


def _refill(
    recipe: Recipe,
    sources: list[Source],
    tallies: dict[str, Tally],
    live: dict[str, Iterator[Document]],
    wanted: dict[str, int],
) -> dict[str, int]:
    """Ask the sources that still have texts for what their domain lacks."""
    total = sum(wanted.values())
    wanted = dict(wanted)
    for domain in sorted({s.domain for s in sources}):
        inside = [s for s in sources if s.domain == domain and s.read]
        goal = total * mix.renormalise(
            recipe.shares, sorted({s.domain for s in sources if s.read})
        ).get(domain, 0)
        lack = int(goal) - sum(tallies[s.name].read_bytes for s in inside)
        parts = mix.renormalise(
            {s.name: s.weight for s in inside}, [s.name for s in inside if s.name in live]
        )
        for name, part in parts.items():
            more = int(lack * part)
            wanted[name] = tallies[name].read_bytes + (more if lack > goal * 0.02 else 0)
    return wanted


def _grade(
    recipe: Recipe,
    items: list[Item],
    rejects: list[str],
    tallies: dict[str, Tally],
    progress: Progress,
) -> tuple[list[Item], dict[str, list[dict]]]:
    """Set each document's copies by its quality or code tier; drop the worst; tell of it."""
    progress("quality", 0, 1)
    copies = [1] * len(items)
    reasons = [""] * len(items)
    for i, (source, document) in enumerate(items):
        if source.filter == "code":
            copies[i] = recipe.code_copies[clean.code_tier(document.text)]
            reasons[i] = "lowest code tier"
    judged = [i for i, (source, _) in enumerate(items) if source.quality]
    told: dict[str, list[dict]] = {}
    if judged and {"reference", "noisy"} <= {items[i][0].quality for i in judged}:
        inside = [items[i] for i in judged]
        scores = _scores(inside, rejects, recipe.buckets.seed)
        judge = _drawn if recipe.keep == "pareto" else _bucketed
        found, reason, told = judge(recipe, inside, scores)
        for i, count in zip(judged, found, strict=True):
            copies[i], reasons[i] = count, reason
    kept = []
    for (source, document), count, reason in zip(items, copies, reasons, strict=True):
        if count:
            kept.append((source, replace(document, copies=count)))
        else:
            tallies[source.name].drop(reason)
    progress("quality", 1, 1)
    return kept, told


Judged = tuple[list[int], str, dict[str, list[dict]]]


def _bucketed(recipe: Recipe, items: list[Item], scores: np.ndarray) -> Judged:
    """Return copies by quality bucket, why none may be left, and rows for the manifest."""
    inside = [document for _, document in items]
    bucket = quality.buckets(scores, [d.size_bytes for d in inside], recipe.buckets)
    rows = quality.describe(inside, scores, bucket, recipe.buckets)
    return [recipe.buckets.copies[n] for n in bucket], "lowest quality bucket", {"buckets": rows}


def _drawn(recipe: Recipe, items: list[Item], scores: np.ndarray) -> Judged:
    """Return one copy of all references and of what wins its draw; the rest as `_bucketed`."""
    kept = [
        source.quality == "reference" or recipe.pareto.keeps(document.text, float(odds))
        for (source, document), odds in zip(items, scores, strict=True)
    ]
    rows = quality.describe_draw([source.name for source, _ in items], scores, kept)
    return [int(stays) for stays in kept], "lost its draw on quality", {"kept": rows}


def _scores(items: list[Item], rejects: list[str], seed: int) -> np.ndarray:
    texts = [d.text for _, d in items] + rejects
    reference = [i for i, (s, _) in enumerate(items) if s.quality == "reference"]
    noise = [i for i, (s, _) in enumerate(items) if s.quality == "noisy"]
    noise += range(len(items), len(texts))
    return quality.score(texts, reference, noise, seed=seed)[: len(items)]


def _unique(
    recipe: Recipe, items: list[Item], tallies: dict[str, Tally], progress: Progress
) -> list[tuple[str, Item]]:
    """Remove duplicates with the held-out documents first, so that none is left in training."""
    held = mix.hold_out([d for _, d in items], recipe.held_out)
    ranked = sorted(zip(items, held, strict=True), key=lambda pair: not pair[1])
    texts = [document.text for (_, document), _ in ranked]
    exact = dedup.exact_duplicates(texts)
    left = [i for i, earlier in enumerate(exact) if earlier is None]
    near = dedup.near_duplicates(
        [texts[i] for i in left],
        held=sum(ranked[i][1] for i in left),
        rule=recipe.near,
        progress=progress,
    )
    repeats = {i: None if n is None else left[n] for i, n in zip(left, near, strict=True)}
    placed: list[tuple[str, Item]] = []
    for i, ((source, document), out) in enumerate(ranked):
        earlier = exact[i] if exact[i] is not None else repeats[i]
        if earlier is not None:
            kind = "exact" if exact[i] is not None else "near"
            leak = " of a held-out document" if ranked[earlier][1] and not out else ""
            tallies[source.name].drop(f"{kind} duplicate{leak}")
            continue
        tally = tallies[source.name]
        tally.kept, tally.held_out = tally.kept + 1, tally.held_out + out
        tally.kept_bytes += document.size_bytes
        placed.append(("held_out" if out else "train", (source, document)))
    return placed


def _decontaminated(
    recipe: Recipe, placed: list[tuple[str, Item]], tallies: dict[str, Tally], progress: Progress
) -> tuple[list[tuple[str, Item]], contamination.Counts]:
    """Cut out of training documents what they share with held-out ones; pieces go on alone."""
    progress("contamination", 0, 1)
    train = [document.text for split, (_, document) in placed if split == "train"]
    tests = [document.text for split, (_, document) in placed if split == "held_out"]
    left, counts = contamination.decontaminate(train, tests, recipe.shared)
    pieces = iter(left)
    found: list[tuple[str, Item]] = []
    for split, (source, document) in placed:
        parts = next(pieces) if split == "train" else [document.text]
        if parts == [document.text]:
            found.append((split, (source, document)))
            continue
        tally = tallies[source.name]
        tally.kept -= int(not parts)  # what is cut in two still counts as one
        tally.kept_bytes += sum(len(part.encode()) for part in parts) - document.size_bytes
        tally.remove("text shared with a held-out document")
        tally.drop("in shreds without what it shares with held-out ones", int(not parts))
        for number, part in enumerate(parts, start=1):
            piece = replace(document, text=part, name=f"{document.name}#{number}")
            found.append((split, (source, piece)))
    progress("contamination", 1, 1)
    return found, counts


def _manifest(
    recipe: Recipe,
    sources: list[Source],
    pairs: list[tuple[str, Document]],
    tallies: dict[str, Tally],
) -> dict:
    trained = [d for split, d in pairs if split == "train"]
    domains = list(
        dict.fromkeys(s.domain for s in sources if s.domain in {d.domain for d in trained})
    )
    return {
        "format": FORMAT,
        "recipe": asdict(recipe),
        "mixture": mix.renormalise(recipe.shares, domains),
        "copies": {x: max(d.copies for d in trained if d.domain == x) for x in domains},
        "domains": {x: _domain_row([(s, d) for s, d in pairs if d.domain == x]) for x in domains},
        "sources": {s.name: _source_row(s, tallies[s.name]) for s in sources},
        "missing": {s.name: list(s.missing) for s in sources if s.missing},
        "short": _short(recipe, sources, tallies),
        "licences": _licences([d for _, d in pairs]),
        "held_out_packages": sorted(
            {d.source for s, d in pairs if s == "held_out" and d.domain == "code"}
        ),
    }


def _short(
    recipe: Recipe, sources: list[Source], tallies: dict[str, Tally]
) -> dict[str, list[int]]:
    """Return [bytes read, bytes wanted] of the domains whose sources gave less than nine tenths."""
    found = {}
    shares = mix.renormalise(recipe.shares, sorted({s.domain for s in sources if s.read}))
    for domain, share in shares.items():
        read = sum(tallies[s.name].read_bytes for s in sources if s.domain == domain)
        if read < 0.9 * share * recipe.bytes:
            found[domain] = [read, int(share * recipe.bytes)]
    return found


def _domain_row(pairs: list[tuple[str, Document]]) -> dict:
    train = [d for split, d in pairs if split == "train"]
    held = [d for split, d in pairs if split == "held_out"]
    return {
        "train_documents": len(train),
        "train_bytes": sum(d.size_bytes for d in train),
        "upsampled_bytes": sum(d.size_bytes * d.copies for d in train),
        "held_out_documents": len(held),
        "held_out_bytes": sum(d.size_bytes for d in held),
    }


def _source_row(source: Source, tally: Tally) -> dict:
    return {"domain": source.domain, "version": source.version, "weight": source.weight} | asdict(
        tally
    )


def _licences(documents: list[Document]) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for document in documents:
        row = rows.setdefault(document.licence, {"documents": 0, "bytes": 0})
        row["documents"] += 1
        row["bytes"] += document.size_bytes
    return dict(sorted(rows.items()))
