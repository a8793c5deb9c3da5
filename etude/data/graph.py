"""Small worlds to search in: made-up things, how they belong together, one page about each.

GLM-4.5 builds search questions from walks over knowledge graphs whose entities are described
instead of named (arXiv:2508.06471, section 3.3). Here the graph is drawn from a seed: a thing has a
kind, a year that no other has, and two relations to other things.
"""

import random
from dataclasses import dataclass

from etude.data.tools_real import SYLLABLES

RELATIONS: dict[str, dict[str, str]] = {  # kind -> relation -> kind it leads to
    "firm": {"boss": "man", "seat": "town"},
    "man": {"home": "town", "friend": "man"},
    "town": {"mayor": "man", "river": "river"},
    "river": {"mouth": "town", "guard": "man"},
}
EACH = 3  # things of a kind
FOUND = 3  # results of a search


@dataclass(frozen=True, slots=True)
class Thing:
    """One entity.

    Attributes:
        name: unique.
        kind: key of `RELATIONS`.
        year: unique.
        leads: relation -> name.
    """

    name: str
    kind: str
    year: int
    leads: dict[str, str]

    @property
    def described(self) -> str:
        """What it is called where its name is obscured."""
        return f"{self.kind} of {self.year}"

    @property
    def page(self) -> str:
        """What its page says."""
        facts = ". ".join(f"{relation} {name}" for relation, name in self.leads.items())
        return f"{self.described}. {facts}"


def graph(rng: random.Random) -> dict[str, Thing]:
    """Draw a world; things by name."""
    count = EACH * len(RELATIONS)
    # two syllables, each pair once: no name is part of another's words
    pairs = rng.sample([a + b for a in SYLLABLES for b in SYLLABLES], count)
    names = {kind: pairs[EACH * i : EACH * (i + 1)] for i, kind in enumerate(RELATIONS)}
    years, things = iter(rng.sample(range(1700, 1800), count)), {}
    for kind, leads in RELATIONS.items():
        for name in names[kind]:
            others = {r: [n for n in names[to] if n != name] for r, to in leads.items()}
            chosen = {relation: rng.choice(found) for relation, found in others.items()}
            things[name] = Thing(name, kind, next(years), chosen)
    return things


def walk(rng: random.Random, things: dict[str, Thing], hops: int) -> tuple[list[str], list[str]]:
    """Draw a walk that visits nothing twice; the names visited and the relations taken."""
    while True:
        names, taken = [rng.choice(list(things))], []
        for _ in range(hops):
            leads = {r: to for r, to in things[names[-1]].leads.items() if to not in names}
            if not leads:
                break
            taken.append(rng.choice(list(leads)))
            names.append(leads[taken[-1]])
        if len(taken) == hops:
            return names, taken


def find(pages: dict[str, str], query: str) -> str:
    """Return the names of the pages that share most words with a query, best first."""
    words = set(query.lower().split())
    scores = {
        name: len(words & {name, *page.replace(".", "").lower().split()})
        for name, page in pages.items()
    }
    best = sorted((name for name in scores if scores[name]), key=lambda n: (-scores[n], n))
    return " ".join(best[:FOUND]) or "nothing found"
