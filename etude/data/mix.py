"""How many bytes each domain and source gives, and which documents are held out."""

from collections.abc import Iterable, Mapping

from etude.data.documents import Document, stable_hash
from etude.data.sources import Source

# Share of the tokens of each domain: the embedded proposal for two cores; the report gives none.
SHARES = {"general": 0.4, "code": 0.3, "math": 0.2, "technical": 0.1}


def renormalise(shares: Mapping[str, float], present: Iterable[str]) -> dict[str, float]:
    """Return the shares of what is present, adding up to 1; a name without one gets the mean."""
    present = list(present)
    if not present:
        return {}
    mean = sum(shares.values()) / max(len(shares), 1) or 1.0
    kept = {name: shares.get(name, mean) for name in present}
    total = sum(kept.values())
    return {name: share / total for name, share in kept.items()}


def budgets(sources: list[Source], total: float, shares: Mapping[str, float]) -> dict[str, int]:
    """Return the bytes wanted from each source that can be had."""
    here = [s for s in sources if s.read]
    domains = renormalise(shares, dict.fromkeys(s.domain for s in here))
    wanted = {}
    for domain, share in domains.items():
        inside = {s.name: s.weight for s in here if s.domain == domain}
        parts = renormalise(inside, inside)
        wanted |= {name: int(total * share * part) for name, part in parts.items()}
    return wanted


def group(document: Document) -> str:
    """Return what is held out as one: a package for code, the document itself elsewhere."""
    return document.source if document.domain == "code" else document.name


def hold_out(documents: list[Document], rate: float) -> list[bool]:
    """Mark about `rate` of each domain's groups, by hash alone; at least one group a domain.

    The hash decides, not the order or the company: a document held out of a small corpus is
    held out of a larger one too. Where no group falls below the rate, the one nearest to it goes.
    """
    draw = {(d.domain, group(d)): _draw(d) for d in documents}
    chosen = {key for key, value in draw.items() if value < rate}
    for domain in {d.domain for d in documents} - {key[0] for key in chosen}:
        groups = [key for key in draw if key[0] == domain]
        if len(groups) > 1:  # a single group stays: there would be nothing to train on
            chosen.add(min(groups, key=lambda key: draw[key]))
    return [(d.domain, group(d)) in chosen for d in documents]


def _draw(document: Document) -> float:
    return stable_hash("held out", document.domain, group(document)) / 2.0**64
