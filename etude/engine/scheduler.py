"""Who works in a step: every request has ids that are known and ids that are computed.

Reading a prompt, writing, checking guesses and computing anew after a preemption are all the same:
tokens that are known and not computed get a share of the step.
"""

from bisect import insort

from etude.engine.entry import Entry, Span
from etude.engine.ledger import Ledger
from etude.engine.request import RANKS

TRIED = 16  # waiting requests that are looked at in a step once one does not fit
OPEN = 8  # one of so many tokens of a step is kept for open prompts, if they have something to read


class Scheduler:
    """Shares places, pages and steps among requests.

    Those that write come first, then whole prompts, then the waiting by priority and arrival, then
    open prompts. None of them is put off for ever:

    - Of a step a part is kept for open prompts, in which they take turns, and they wait behind
      whole prompts of their priority, but no longer than others (`max_skips`).
    - To let a request in, open prompts that have nothing to read give up their places and pages,
      the longest untouched first; for a whole prompt that has waited for `starvation_s` even one
      that still grows. What it had read is found again while the room is not needed.

    Attributes:
        waiting: those that hold nothing, in the order in which they will be let in.
    """

    def __init__(self, ledger: Ledger):
        self.ledger, self.desk, self.settings = ledger, ledger.desk, ledger.settings
        self.waiting: list[Entry] = []
        self._spans: list[Span] = []
        self._fed = self.settings.clock()

    @property
    def places(self) -> int:
        """Requests that may still be let in."""
        return self.settings.max_running - len(self.desk.readers) - len(self.desk.entries)

    def add(self, entry: Entry) -> None:
        """Let a request wait for its turn."""
        insort(self.waiting, entry, key=lambda one: one.rank)

    def plan(self) -> list[Span]:
        """Share out one step; who writes comes first, in the order of rows."""
        self._spans, now = [], self.settings.clock()
        left = budget = self.settings.token_budget
        for entry in self.desk.entries:
            if entry.row >= 0:  # an earlier one may have taken its place
                tokens = len(entry.known) + len(entry.draft)
                left -= tokens - entry.computed
                self._room(entry, tokens)
        # guesses never keep a prompt from being read
        left = max(left, budget // 4)
        for entry in [one for one in self.desk.readers if self._idle(one, now)]:
            self.preempt(entry, parked=True)
        growing = any(not one.sealed and not self.rests(one) for one in self.desk.readers)
        kept = max(1, budget // OPEN) if growing else 0
        for entry in list(self.desk.readers):
            if entry.sealed:
                left -= self._share(entry, left - kept)
        if self.waiting:
            left = self._admit(left - kept, now) + kept
        for entry in list(self.desk.readers):
            if not entry.sealed and (count := self._share(entry, left)):
                left -= count
                self.desk.readers.remove(entry)
                self.desk.readers.append(entry)
        self._join()
        # some may have given way to one that reads
        drafts = [(entry, entry.left + len(entry.draft)) for entry in self.desk.entries]
        rows = [Span(one, one.computed, count, len(one.draft)) for one, count in drafts]
        return [*rows, *self._spans]

    def _share(self, entry: Entry, left: int) -> int:
        """Give a reading request its tokens of this step; return how many."""
        count = self._count(entry, left) if entry.row >= 0 else 0
        if count <= 0 or not self._room(entry, entry.computed + count):
            return 0
        last = entry.sealed and entry.computed + count == len(entry.known)
        self._spans.append(Span(entry, entry.computed, count, last=last))
        return count

    def _count(self, entry: Entry, left: int) -> int:
        at, span = entry.computed, self.settings.span
        if self.settings.deterministic:
            if at >= entry.prompt:
                return min(1, entry.left)
            # the last chunk of a prompt waits until the prompt is whole
            end = (at // span + 1) * span
            if not entry.sealed and end > len(entry.known) - 1:
                return 0
            return min(end, entry.prompt) - at
        count = min(entry.left, left, span)
        mark = min((mark for mark in entry.marks if mark > at), default=at + count)
        return min(count, mark - at)

    def _join(self) -> None:
        """Those who wait with a prompt that is read to its end in this step go on from there."""
        spans = [span for span in self._spans if span.last and span.entry.leads]
        found, places = {span.entry.alike: span for span in spans}, self.places
        for entry in self.waiting if found else ():
            if places > 0 and entry.leads and (span := found.get(entry.alike)):
                span.twins.append(entry)
                places -= 1

    def _room(self, entry: Entry, tokens: int) -> bool:
        """Give a request pages for so many tokens; others, or it, may have to let theirs go."""
        while not self.ledger.grow(entry, tokens):
            if entry.draft:
                tokens -= len(entry.draft)
                entry.draft = []
                continue
            # the youngest request of the lowest priority
            victim = max(self.desk.seated, key=lambda one: one.rank)
            self.preempt(victim)
            if victim is entry:
                return False
        return True

    def preempt(self, entry: Entry, *, parked: bool = False) -> None:
        """Take everything from a request; it will be computed anew, from the same ids.

        A parked one is an open prompt that waits until it grows or ends.
        """
        self.ledger.stats.preempted += not parked
        self._spans = [span for span in self._spans if span.entry is not entry]
        self.ledger.leave([entry])
        entry.parked = parked
        self.add(entry)

    def follow(self, span: Span, over: set[int]) -> list[Entry]:
        """Let twins go on from what was read, but for those that are `over`; return who can."""
        fit = [one for one in span.twins if id(one) not in over]
        fit = [one for one in fit if self.ledger.share(span.entry, one)]
        self.waiting = [entry for entry in self.waiting if entry not in fit]
        return fit

    def _admit(self, left: int, now: float) -> int:
        """Let in who fits; return the tokens that are left."""
        order, promised, tired = self._order(now), 0, self.settings.max_skips
        read = {entry.alike for entry in self.desk.readers if entry.leads}
        passed: list[Entry] = []
        entered: set[int] = set()
        # rows for all at once: each later growth would copy those that are there
        self.desk.reserve(len(self.desk.seated) + min(self.places, len(order)), 0)
        for entry in order:
            if entry.parked:
                continue
            late = entry.sealed and now - entry.arrived > self.settings.starvation_s
            while self.places <= promised and self._evict(entered, late=late):
                pass
            if self.places <= promised or len(passed) == TRIED:
                break
            if entry.leads and entry.alike in read:  # its place is kept until that one has read
                promised += 1
                continue
            if left <= 0 or not self._enter(entry, entered, late=late):
                passed.append(entry)
                if entry.skips >= tired or left <= 0:
                    break
                continue
            entered.add(id(entry))
            if entry.leads:
                read.add(entry.alike)
            left -= self._share(entry, left) if entry.sealed else 0
            if entry.request.priority == "batch":
                self._fed = now
            over = passed
            if self.waiting[-1].rank[:2] > entry.rank[:2]:  # some of lower rank came before it
                over = [one for one in order if one.number < entry.number or one in passed]
                over = [one for one in over if id(one) not in entered and not one.parked]
            for one in over:
                one.skips += 1
            if any(one.skips >= tired for one in over):
                break
        self.waiting = [entry for entry in self.waiting if id(entry) not in entered]
        return left

    def _enter(self, entry: Entry, entered: set[int], *, late: bool) -> bool:
        """Let a request in if there are pages for it, perhaps of open prompts."""
        while not self.ledger.enter(entry, spare=int(self.places < self.settings.max_running)):
            if not self._evict(entered, late=late):
                return False
        return True

    def _evict(self, entered: set[int], *, late: bool) -> bool:
        """Take the place and pages of an open prompt that rests, or for a late request of any."""
        found = [one for one in self.desk.readers if not one.sealed and id(one) not in entered]
        found = [one for one in found if late or self.rests(one)]
        if found:
            entry = min(found, key=lambda one: (not self.rests(one), one.touched))
            self.preempt(entry, parked=self.rests(entry))
        return bool(found)

    def _order(self, now: float) -> list[Entry]:
        """The waiting, those first that were passed over too often or too long."""
        batch, tired, first = RANKS["batch"], self.settings.max_skips, None
        # the last of those who wait has the lowest priority
        if self.waiting[-1].rank[0] == batch and now - self._fed > self.settings.starvation_s:
            first = next((e for e in self.waiting if e.rank[0] == batch and not e.parked), None)
        if first is None and all(entry.skips < tired for entry in self.waiting):
            return list(self.waiting)
        return sorted(self.waiting, key=lambda e: (e.skips < tired, e is not first, e.rank))

    def rests(self, entry: Entry) -> bool:
        """Whether an open prompt has nothing to read until it grows or ends."""
        return not entry.sealed and self._count(entry, self.settings.token_budget) <= 0

    def _idle(self, entry: Entry, now: float) -> bool:
        return now - entry.touched > self.settings.open_idle_s and self.rests(entry)
