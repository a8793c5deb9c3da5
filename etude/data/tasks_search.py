"""Search questions over a small world of pages: the start is described, the end is asked for.

`river of home of boss of firm of 1712?` has three hops: a search for what is described, one page a
hop, and the name on the last page. So level h takes h + 3 turns, and a policy that is cut off after
k turns can only answer the levels below k - 2 (GLM-4.5, arXiv:2508.06471, section 3.3).
"""

import random

from etude.data.graph import find, graph, walk
from etude.data.tasks_base import Call, Exact, Item


class Search(Exact):
    """1 to 4 hops from something obscured; the final answer alone counts."""

    name = "search"
    levels = 4

    def sample(self, rng: random.Random, level: int) -> Item:
        """Return a walk of `level + 1` hops in a world of its own."""
        things = graph(rng)
        names, taken = walk(rng, things, level + 1)
        pages = {name: thing.page for name, thing in things.items()}
        asked = things[names[0]].described
        calls = [Call("search", {"query": asked}, find(pages, asked))]
        calls += [Call("open", {"page": name}, pages[name]) for name in names[:-1]]
        question = f"{' of '.join([*reversed(taken), asked])}?"
        tools, key = ("search", "open"), f"{question} {names[0]}"
        data = {"pages": pages}
        return Item("search", level, question, names[-1], "", tools, tuple(calls), data, key)
