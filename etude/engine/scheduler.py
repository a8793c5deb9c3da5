"""Who works in a step: every request has ids that are known and ids that are computed.

Reading a prompt, writing, checking guesses and computing anew after a preemption are all the same:
tokens that are known and not computed get a share of the step.
"""

from bisect import insort

from etude.engine.desk import Desk
from etude.engine.entry import Entry
from etude.engine.pages import Node, Pages, Slots, Snapshots
from etude.engine.request import RANKS
from etude.engine.runner import Plan, Span
from etude.engine.settings import Settings
from etude.engine.store import Store
from etude.errors import EtudeError

TRIED = 16  # waiting requests that are looked at in a step once one does not fit


class Scheduler:
    """Shares pages, slots and steps among requests.

    Args:
        store: memory of the layers.
        desk: rows of those that write.
        settings: bounds.

    Attributes:
        waiting: those that hold nothing, in the order in which they will be let in.
        reading: those whose ids are not yet all computed.
    """

    def __init__(self, store: Store, desk: Desk, settings: Settings):
        self.store, self.desk, self.settings = store, desk, settings
        self.stateful = bool(store.states)
        self.snapshots = Snapshots(Slots(settings.snapshots, settings.max_running))
        self.pages = Pages(store.pages, store.size, self.snapshots.forget)
        self.slots = Slots(settings.max_running)
        self.waiting: list[Entry] = []
        self.reading: list[Entry] = []
        self.preempted = 0
        self._twins, self._tired = 0, False
        self._plan = Plan()
        self._fed = settings.clock()
        size = store.size
        wanted = settings.chunk or settings.token_budget
        # fixed chunks end where pages end, so that what is shared was computed in whole chunks
        self.chunk = -(-wanted // size) * size if settings.deterministic else wanted

    @property
    def running(self) -> int:
        """Requests that hold something, or will with the one whose prompt they share."""
        return len(self.reading) + len(self.desk.entries) + self._twins

    def add(self, entry: Entry) -> None:
        """Let a request wait for its turn."""
        insort(self.waiting, entry, key=lambda one: one.rank)

    def plan(self) -> Plan:
        """Share out one step."""
        plan, now = Plan(), self.settings.clock()
        self._plan = plan
        left, size = self.settings.token_budget, self.pages.size
        for entry in self.desk.entries:
            tokens = len(entry.known) + len(entry.draft)
            if entry.row >= 0:  # an earlier one may have taken its place
                left -= tokens - entry.computed
                if tokens > len(entry.pages) * size:
                    self._room(entry, tokens)
        # guesses never keep a prompt from being read
        left = max(left, self.settings.token_budget // 4)
        for entry in list(self.reading):
            if entry.running and self._idle(entry, now):
                self.preempt(entry, parked=True)
            elif entry.running and entry.sealed:
                left -= self._share(entry, left, plan)
        if self.waiting:
            left = self._admit(plan, left, now)
        for entry in list(self.reading):  # open prompts get what the others leave
            if entry.running and not entry.sealed:
                left -= self._share(entry, left, plan)
        plan.rows = self.desk.entries  # less those that gave way to one that reads
        return plan

    def _share(self, entry: Entry, left: int, plan: Plan) -> int:
        """Give a reading request its tokens of this step; return how many."""
        count = self._count(entry, left)
        if count <= 0 or not self._room(entry, entry.computed + count):
            return 0
        plan.spans.append(Span(entry, entry.computed, count))
        return count

    def _count(self, entry: Entry, left: int) -> int:
        at = entry.computed
        if self.settings.deterministic:
            if at >= entry.prompt:
                return min(1, entry.left)
            # the last chunk of a prompt waits until the prompt is whole
            end = (at // self.chunk + 1) * self.chunk
            if not entry.sealed and end > len(entry.known) - 1:
                return 0
            return min(end, entry.prompt) - at
        count = min(entry.left, left, self.chunk)
        mark = min((mark for mark in entry.marks if mark > at), default=at + count)
        return min(count, mark - at)

    def _room(self, entry: Entry, tokens: int) -> bool:
        """Give a request pages for so many tokens; others, or it, may have to let theirs go."""
        while (more := self.pages.needed(tokens) - len(entry.pages)) > 0:
            taken = self.pages.take(more)
            if taken is not None:
                entry.pages += taken
            elif entry.draft:
                tokens -= len(entry.draft)
                entry.draft = []
            else:
                victim = self._victim()
                self.preempt(victim)
                if victim is entry:
                    return False
        return True

    def _victim(self) -> Entry:
        """The youngest request of the lowest priority."""
        return max((*self.reading, *self.desk.entries), key=lambda entry: entry.rank)

    def preempt(self, entry: Entry, *, parked: bool = False) -> None:
        """Take everything from a request; it will be computed anew, from the same ids.

        A parked one is an open prompt that waits until it grows or ends.
        """
        self.preempted += not parked
        self._plan.spans = [span for span in self._plan.spans if span.entry is not entry]
        self.vacate([entry])
        entry.parked = parked
        self.add(entry)

    def vacate(self, entries: list[Entry], *, spoilt: bool = False) -> None:
        """Let requests go from the desk, and their pages, slots and twins with them."""
        self.desk.leave([entry for entry in entries if entry.row >= 0], spoilt=spoilt)
        gone = {id(entry) for entry in entries}
        if any(entry.running for entry in entries):
            self.reading = [entry for entry in self.reading if id(entry) not in gone]
        for entry in entries:
            self._part(entry)
            self.pages.release(entry.pages)
            if entry.slot >= 0:
                self.slots.release(entry.slot)
            entry.pages, entry.nodes, entry.draft, entry.slot = [], [], [], -1
            entry.running, entry.computed, entry.clean = False, 0, 0
            entry.marks.clear()

    def _part(self, entry: Entry) -> None:
        """End what a request has with its twins or its leader; twins wait again."""
        if entry.leader is not None:
            entry.leader.twins.remove(entry)
            entry.leader = None
            self._twins -= 1
        for twin in entry.twins:
            twin.leader = None
            self._twins -= 1
            self.add(twin)
        entry.twins = []

    def seat(self, leader: Entry, going: list[Entry]) -> list[Entry]:
        """Move a request that has read its prompt, and its twins, to the desk.

        Args:
            leader: the one that has read.
            going: those of it and its twins that go on; the others are done.

        Returns:
            Those that found a seat; a twin without pages waits again.
        """
        size, seated = self.pages.size, []
        for entry in going:
            if entry is leader:
                seated.append(entry)
                continue
            entry.leader = None
            leader.twins.remove(entry)
            self._twins -= 1
            whole = leader.pages[: leader.computed // size]
            self.pages.hold(whole)
            taken = self.pages.take(self.pages.needed(len(entry.known)) - len(whole))
            if taken is None:
                self.pages.release(whole)
                self.add(entry)
                continue
            entry.pages, entry.nodes = [*whole, *taken], leader.nodes[: len(whole)]
            entry.computed, entry.running = leader.computed, True
            seated.append(entry)
        return seated

    def sit(self, entries: list[Entry], sources: list[Entry]) -> None:
        """Give requests that have read equally many tokens their rows."""
        self.desk.join(entries, sources)
        seated = {id(entry) for entry in entries}
        self.reading = [entry for entry in self.reading if id(entry) not in seated]
        for entry, source in zip(entries, sources, strict=True):
            if entry is not source:  # whole pages are those of its leader
                entry.clean = entry.computed // self.pages.size * self.pages.size
        for entry in entries:
            if entry.slot >= 0:
                self.slots.release(entry.slot)
                entry.slot = -1

    # Letting in -----------------------------------------------------------------------------------

    def _admit(self, plan: Plan, left: int, now: float) -> int:
        """Let in who fits; return the tokens that are left."""
        order = self._order(now)
        leaders = {}
        if not self.settings.deterministic:
            leaders = {_prompt(one): one for one in self.reading if _leads(one)}
        passed: list[Entry] = []
        entered: set[int] = set()
        for entry in order:
            if entry.parked:
                continue
            if len(passed) == TRIED:
                break
            if self.running >= self.settings.max_running and not self._evict(entered):
                break
            leader = leaders.get(_prompt(entry)) if _leads(entry) else None
            if leader is not None:
                entry.leader = leader
                leader.twins.append(entry)
                self._twins += 1
            elif left > 0 and (self._enter(entry) or (self._evict(entered) and self._enter(entry))):
                if _leads(entry) and not self.settings.deterministic:
                    leaders[_prompt(entry)] = entry
                left -= self._share(entry, left, plan) if entry.sealed else 0
            else:
                passed.append(entry)
                if entry.skips >= self.settings.max_skips or left <= 0:
                    break
                continue
            entered.add(id(entry))
            if entry.request.priority == "batch":
                self._fed = now
            over = passed
            if self.waiting[-1].rank[0] > entry.rank[0]:  # some of lower priority came before it
                over = [one for one in order if one.number < entry.number or one in passed]
                over = [one for one in over if id(one) not in entered and not one.parked]
            for one in over:
                one.skips += 1
            if any(one.skips >= self.settings.max_skips for one in over):
                self._tired = True
                break
        if entered:
            self.waiting = [entry for entry in self.waiting if id(entry) not in entered]
            self._tired = self._tired and any(e.skips >= self.settings.max_skips for e in order)
        return left

    def _evict(self, entered: set[int]) -> bool:
        """Take the pages of open prompts that have nothing to read, if there are any."""
        idle = [one for one in self.reading if self.rests(one) and id(one) not in entered]
        for entry in idle:
            self.preempt(entry, parked=True)
        return bool(idle)

    def _order(self, now: float) -> list[Entry]:
        """The waiting, those first that were passed over too often or too long."""
        batch, tired, first = RANKS["batch"], self.settings.max_skips, None
        # the last of those who wait has the lowest priority
        if self.waiting[-1].rank[0] == batch and now - self._fed > self.settings.starvation_s:
            first = next((e for e in self.waiting if e.rank[0] == batch and not e.parked), None)
        if first is None and not self._tired:
            return list(self.waiting)
        return sorted(self.waiting, key=lambda e: (e.skips < tired, e is not first, e.rank))

    def _enter(self, entry: Entry) -> bool:
        """Give a request the pages that it can share, and new ones for the rest of its ids."""
        found = self._known(entry)
        nodes, junction = found, 0
        if self.stateful:
            junction = len(found) * self.pages.size
            while nodes and nodes[-1].snapshot < 0:
                nodes = nodes[:-1]
        shared = [node.page for node in nodes]
        self.pages.hold(shared)
        needed = self.pages.needed(len(entry.known)) - len(shared)
        spare = 1 if self.running else 0
        taken = self.pages.take(needed) if needed + spare <= self.pages.available else None
        if taken is None:
            self.pages.release(shared)
            return False
        entry.pages, entry.nodes = [*shared, *taken], [node.key for node in nodes]
        entry.computed = entry.clean = len(nodes) * self.pages.size
        self.pages.asked += len(entry.known)
        self.pages.hits += entry.computed
        entry.running = True
        self.reading.append(entry)
        if self.stateful:
            entry.slot = self.slots.take()
            if nodes:
                self.snapshots.used(nodes[-1])
                self.store.copy(nodes[-1].snapshot, entry.slot)
            else:
                self.store.clear(entry.slot)
            self.mark(entry, junction)
        return True

    def _known(self, entry: Entry) -> list[Node]:
        """Pages with the start of what a request knows; one id at least is left to compute."""
        if not self.settings.reuse or entry.request.want.prompt:
            return []
        limit = len(entry.known) - 1
        if self.settings.deterministic:
            limit = min(limit, entry.prompt - 1) // self.chunk * self.chunk
        found = self.pages.find(entry.request.owner, entry.known, limit)
        if self.settings.deterministic:
            # chunks begin at multiples of their size, whoever computed what stands before
            found = found[
                : len(found) * self.pages.size // self.chunk * self.chunk // self.pages.size
            ]
        return found

    def mark(self, entry: Entry, junction: int = 0) -> None:
        """Note where the states of a prompt are to be kept for later prompts."""
        if not (self.stateful and self.settings.reuse and self.settings.snapshots):
            return
        size, end = self.pages.size, len(entry.known)
        step = size * self.settings.snapshot_every
        places = {*range(step, end, step), entry.prompt // size * size, junction}
        if self.settings.deterministic:
            places = {*range(self.chunk, entry.prompt + 1, self.chunk)}
        entry.marks |= {place for place in places if place > entry.computed}

    def publish(self, entry: Entry) -> None:
        """Let others find what a request has computed, whole pages of it, and its state."""
        if not self.settings.reuse:
            return
        size, end = self.pages.size, entry.computed
        if self.settings.deterministic:
            end = min(end, entry.prompt) // self.chunk * self.chunk
        elif entry.row >= 0 and end // size > len(entry.nodes):
            self.desk.save(entry, end // size * size)
        for n in range(len(entry.nodes), end // size):
            tokens, own = tuple(entry.known[n * size : (n + 1) * size]), entry.pages[n]
            node = self.pages.publish(entry.parent, tokens, own)
            if node.page != own:  # somebody else was first: theirs serves us both
                self.pages.hold([node.page])
                self.pages.release([own])
                entry.pages[n] = node.page
            entry.nodes.append(node.key)
        if entry.slot >= 0 and entry.computed in entry.marks and entry.computed == end:
            node = self.pages.node(entry.pages[end // size - 1])
            if node is not None and node.snapshot < 0:
                slot = self.snapshots.take(node)
                if slot >= 0:
                    self.store.copy(entry.slot, slot)

    def rests(self, entry: Entry) -> bool:
        """Whether an open prompt has nothing to read until it grows or ends."""
        return not entry.sealed and self._count(entry, self.settings.token_budget) <= 0

    def _idle(self, entry: Entry, now: float) -> bool:
        idle = now - entry.touched > self.settings.open_idle_s
        return self.rests(entry) and idle

    def check(self, live: list[Entry]) -> None:
        """Compare all counts with what the live requests hold.

        Raises:
            EtudeError: a page, slot or row is lost, or has two owners.
        """
        self.pages.check([entry.pages for entry in live])
        own = [entry.clean if entry.row >= 0 else entry.computed for entry in live]
        starts = [tokens // self.pages.size for tokens in own]
        for kind, held in (
            ("state slots", [entry.slot for entry in live if entry.slot >= 0]),
            ("desk rows", [entry.row for entry in live if entry.row >= 0]),
            ("own pages", [p for e, n in zip(live, starts, strict=True) for p in e.pages[n:]]),
        ):
            if len(held) != len(set(held)):
                raise EtudeError(kind, "one with two owners", "one owner each", code=1)
        busy = sum(entry.slot >= 0 for entry in live)
        if self.slots.free + busy != self.slots.count:
            found = f"{self.slots.free} free and {busy} taken"
            raise EtudeError("state slots", found, f"{self.slots.count} in all", code=1)
        if [entry.row for entry in self.desk.entries] != list(range(len(self.desk.entries))):
            raise EtudeError("desk", "rows out of order", "one request per row", code=1)


def _prompt(entry: Entry) -> tuple[str, tuple[int, ...]]:
    return entry.request.owner, tuple(entry.request.prompt)


def _leads(entry: Entry) -> bool:
    """Whether a request can share what it reads with others that come with the same prompt."""
    return entry.written == 0 and not entry.request.open and not entry.request.want.prompt
