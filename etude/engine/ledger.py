"""What each request holds: pages of every kind, a row, and what others may find of them.

Layers that read equally far back keep their tokens in pages of one kind, with a table of its own.
Behind a band pages are let go, and leave a hole in the table; layers that read all keep all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from etude.engine.desk import Desk
from etude.engine.entry import HOLE, Entry
from etude.engine.pages import Node, Pages, follow
from etude.engine.settings import Settings
from etude.errors import EtudeError

Found = list[tuple[bytes, list[Node | None]]]  # key of each page, and its node of each kind


@dataclass(slots=True)
class Stats:
    """What is held now, and counts since the engine was made."""

    waiting: int = 0
    reading: int = 0
    writing: int = 0
    pages: int = 0
    snapshots: int = 0
    preempted: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0


class Ledger:
    """Counts of all that requests hold.

    Attributes:
        tables: pages by kind; the first reaches back furthest, and knows snapshots and routes.
        stateful: whether layers have states.
        stats: counts of the whole engine; what is held is filled in when it is told.
    """

    def __init__(self, desk: Desk, settings: Settings):
        self.desk, self.settings, store = desk, settings, desk.store
        self.size, self.stateful = store.size, bool(store.states)
        snapshots = range(settings.snapshots * settings.reuse)
        self.tables = [
            Pages(count, store.size, reach=reach, slots=() if table else snapshots)
            for table, (reach, count) in enumerate(zip(store.reaches, store.counts, strict=True))
        ]
        self.stats = Stats()

    def enter(self, entry: Entry, *, spare: int) -> bool:
        """Give a request the pages that it can share, new ones for what it reads, and a row.

        Returns:
            Whether there were enough, with `spare` pages of each kind to be left.
        """
        found, junction = self._find(entry)
        entry.computed = len(found) * self.size
        for table, pages in enumerate(self.tables):
            gone = pages.behind(entry.computed)
            shared = [node.page for _, nodes in found[gone:] if (node := nodes[table])]
            pages.hold(shared)
            entry.pages.append([HOLE] * gone + shared)
        entry.nodes = [key for key, _ in found]
        soon = entry.computed + self.settings.span
        if not self.grow(entry, len(entry.known), soon=soon, spare=spare):
            self.leave([entry])
            return False
        if entry.request.want.routes:
            for _, nodes in found[len(entry.routes) // self.size :]:
                known = nodes[0].routes if nodes[0] else None
                entry.routes += (known or [])[len(entry.routes) % self.size :]
        self.stats.prompt_tokens += len(entry.known)
        self.stats.reused_tokens += entry.computed
        self.desk.seat(entry, len(entry.known) + 1)
        last = found[-1][1][0] if found else None
        self.desk.load(entry, self.tables[0].used(last) if last else -1)
        self.mark(entry, junction)
        return True

    def grow(self, entry: Entry, tokens: int, *, soon: int | None = None, spare: int = 0) -> bool:
        """Give a request pages for so many tokens; false, and none, if there are too few.

        Of pages that are let go again only so many as `soon` needs; `spare` must be left of each.
        """
        more = []
        for pages, held in zip(self.tables, entry.pages, strict=True):
            end = tokens if soon is None or pages.reach is None else min(soon, tokens)
            more.append(max(0, -(-end // self.size) - len(held)))
            if more[-1] and more[-1] + spare > pages.available:
                return False
        for pages, held, count in zip(self.tables, entry.pages, more, strict=True):
            held += pages.take(count) or []
        return True

    def share(self, leader: Entry, entry: Entry) -> bool:
        """Let a request go on from what another with the same prompt has read.

        Returns:
            Whether there were enough pages for its own.
        """
        entry.nodes, whole = list(leader.nodes), len(leader.nodes)
        for pages, held in zip(self.tables, leader.pages, strict=True):
            entry.pages.append(held[:whole])
            pages.hold(_solid(held[:whole]))
        if not self.grow(entry, len(entry.known)):
            self.leave([entry])
            return False
        entry.computed = leader.computed
        self.desk.seat(entry, len(entry.known) + 1)
        self.desk.copy(leader, entry)
        return True

    def shed(self, entry: Entry) -> None:
        """Let pages go that no layer of their kind reads again."""
        for pages, held in zip(self.tables, entry.pages, strict=False):
            behind = pages.behind(entry.computed)
            if behind and held[behind - 1] != HOLE:
                pages.release(_solid(held[:behind]))
                held[:behind] = [HOLE] * behind

    def leave(self, gone: Sequence[Entry], *, spoilt: bool = False) -> None:
        """Let everything go that requests hold; each may start anew from its ids."""
        self.desk.leave(gone, spoilt=spoilt)
        for entry in gone:
            for pages, held in zip(self.tables, entry.pages, strict=False):
                pages.release(_solid(held))
            entry.pages, entry.nodes, entry.draft, entry.computed = [], [], [], 0
            entry.marks.clear()

    def _find(self, entry: Entry) -> tuple[Found, int]:
        """Pages with the start of what a request knows; one id at least is left to compute.

        Returns:
            Them, up to where the request can go on; and the number of tokens after which it could,
            were the states there known.
        """
        how, want, known = self.settings, entry.request.want, entry.known
        if not how.reuse or want.prompt:
            return [], 0
        limit, step, parent = len(known) - 1, self.size, entry.parent
        if how.deterministic:  # passes begin at fixed places, whoever computed what stands before
            limit, step = min(limit, entry.prompt - 1), how.span
        found: Found = []
        runs, usable, junction = [0] * len(self.tables), 0, 0
        for end in range(self.size, limit + 1, self.size):
            tokens = tuple(known[end - self.size : end])
            parent = follow(parent, tokens)
            nodes = [pages.find(parent, tokens) for pages in self.tables]
            first = nodes[0]
            told = end <= len(entry.routes) or (first is not None and first.routes is not None)
            if (first is None and self.tables[0].reach is None) or (want.routes and not told):
                break
            found.append((parent, nodes))
            runs = [run + 1 if node else 0 for run, node in zip(runs, nodes, strict=True)]
            read = [len(found) - pages.behind(end) for pages in self.tables]
            if end % step == 0 and all(run >= n for run, n in zip(runs, read, strict=True)):
                junction = end
                if not self.stateful or (first is not None and first.snapshot >= 0):
                    usable = len(found)
        return found[:usable], junction

    def mark(self, entry: Entry, junction: int = 0) -> None:
        """Note where the states of a prompt are to be kept for later prompts."""
        if not (self.stateful and self.settings.reuse and self.settings.snapshots):
            return
        span, step = self.settings.span, self.size * self.settings.snapshot_every
        if self.settings.deterministic:
            places = {*range(span, entry.prompt + 1, span)}
        else:
            whole = entry.prompt // self.size * self.size
            places = {*range(step, len(entry.known), step), whole, junction}
        entry.marks |= {place for place in places if place > entry.computed}

    def publish(self, entry: Entry) -> None:
        """Let others find what a request has computed, whole pages of it, and its state."""
        size, end = self.size, entry.computed
        if not self.settings.reuse:
            return
        if self.settings.deterministic:
            end = min(end, entry.prompt) // self.settings.span * self.settings.span
        if end // size > len(entry.nodes):
            self.desk.save(entry, len(entry.nodes) * size, end // size * size)
        for n in range(len(entry.nodes), end // size):
            tokens = tuple(entry.known[n * size : (n + 1) * size])
            key = follow(entry.parent, tokens)
            for pages, held in zip(self.tables, entry.pages, strict=True):
                if (own := held[n]) == HOLE:
                    continue
                node = pages.publish(key, tokens, own)
                if node.page != own:  # somebody else was first: theirs serves us both
                    pages.hold([node.page])
                    pages.release([own])
                    held[n] = node.page
                if entry.request.want.routes and node.routes is None:
                    node.routes = entry.routes[n * size : (n + 1) * size]
            entry.nodes.append(key)
        if entry.computed in entry.marks and entry.computed == end:
            node = self.tables[0].node(entry.pages[0][end // size - 1])
            if node is not None and node.snapshot < 0 and (slot := self.tables[0].snap(node)) >= 0:
                self.desk.snap(entry, slot)

    def disown(self, entry: Entry) -> None:
        """Forget what a request has published: it may be as broken as the request is."""
        for pages, held in zip(self.tables, entry.pages, strict=False):
            pages.disown(held)

    def check(self, live: list[Entry]) -> None:
        """Compare all counts with what the live requests hold.

        Raises:
            EtudeError: a page or row is lost, or has two owners.
        """
        seated = [entry for entry in live if entry.row >= 0]
        rows, first = {entry.row for entry in seated}, [entry.row for entry in self.desk.entries]
        if len(rows) < len(seated) or first != list(range(len(first))):
            raise EtudeError("desk", "rows out of order", "one request per row", code=1)
        if {id(entry) for entry in seated} != {id(entry) for entry in self.desk.seated}:
            raise EtudeError("desk", "somebody who is not live", "who is", code=1)
        for table, pages in enumerate(self.tables):
            held = [entry.pages[table] if entry.pages else [] for entry in live]
            pages.check([_solid(row) for row in held])
            # known pages may be others' too; one that is not yet known is one request's
            own = [row[len(one.nodes) :] for row, one in zip(held, live, strict=True)]
            single = [page for row in own for page in _solid(row)]
            if len(single) != len(set(single)):
                raise EtudeError("page pool", "a page with two owners", "one owner each", code=1)


def _solid(held: list[int]) -> list[int]:
    """The pages of a table without its holes."""
    return [page for page in held if page != HOLE]
