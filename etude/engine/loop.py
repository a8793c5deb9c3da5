"""Launch and collect: a plan becomes a pass, and the pass becomes ids and deltas."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby

from etude.engine.choose import Choice, Chooser
from etude.engine.draft import Guesser
from etude.engine.entry import Entry
from etude.engine.request import Delta
from etude.engine.runner import Done, Plan, Runner, Span
from etude.engine.scheduler import Scheduler

Ended = list[tuple[Entry, Delta]]  # who is over, each with its last delta


class Loop:
    """What a step does after it is planned.

    Args:
        runner: runs passes.
        scheduler: who has which part of a step.
        guesses: ids to guess per step.

    Attributes:
        live: the answers that are not over, by the id of their request.
        told: deltas that the next step gives out.
        drafted, accepted: ids that were guessed, and guessed right.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, guesses: int):
        self.runner, self.scheduler, self.desk = runner, scheduler, runner.desk
        self.ledger, self.fixed = scheduler.ledger, scheduler.settings.deterministic
        self.chooser = Chooser()
        self.guesser = Guesser(runner, guesses) if guesses else None
        self.live: dict[str, list[Entry]] = {}
        self.told: list[Delta] = []
        self.drafted = self.accepted = 0

    def launch(self, plan: Plan) -> None:
        """Run a plan, and collect what it gives."""
        if self.fixed:
            for span in plan.spans:
                self._apart(Plan(spans=[span]))
            return
        try:
            done = self.runner.run(plan)
        except Exception:  # whose fault it was is found by halves
            if self.ledger.stateful and plan.rows and not self.desk.careful:
                # some states have moved, some not: all are computed anew, and then with care
                self.desk.left = {}
                for entry in plan.rows:
                    self.scheduler.preempt(entry)
                self.desk.careful = True  # behind those, for an empty desk forgets it
                return
            self._apart(plan)
            self.desk.careful = False
        else:
            self._collect(done, self.guesser)

    def _apart(self, plan: Plan) -> None:
        """Run a plan without guesses, in halves if it fails, until the culprits are alone."""
        try:
            self.desk.left = {}
            done = self.runner.run(plan, apart=True)
        except Exception as error:
            units: list[Entry | Span] = [*plan.rows, *plan.spans]
            if len(units) == 1:
                entry = units[0].entry if isinstance(units[0], Span) else units[0]
                self.end([(entry, entry.failed("internal_error", _told(error)))], spoilt=True)
                return
            half = len(units) // 2
            for part in (units[:half], units[half:]):
                rows = [one for one in part if isinstance(one, Entry) and one.row >= 0]
                spans = [one for one in part if isinstance(one, Span) and one.entry.running]
                if rows or spans:
                    self._apart(Plan(rows, spans))
        else:
            for entry in plan.rows:
                entry.draft = []
            self._collect(done, None)

    def _collect(self, done: Done, guesser: Guesser | None) -> None:
        """Choose ids, tell them, and let requests move on."""
        rows, spans = done.plan.rows, done.plan.spans
        before = [(len(entry.known), len(entry.draft), entry.computed) for entry in rows]
        ended: Ended = []
        for entry, choices in self._choose(done):
            self._take(entry, choices, ended)
        over = {id(entry) for entry, _ in ended}
        guess = None
        if guesser:
            with suppress(Exception):  # then there are no guesses
                guess = guesser.follow(done, over)
        kept = [n for n, one in enumerate(rows) if self._advance(one, *before[n][:2])]
        for view in done.views:
            view.commit(kept if view is self.desk and len(kept) < len(rows) else None)
        for span in spans:
            span.entry.computed += span.count
        if done.routes:
            self._route(done, [start for *_, start in before])
        bad = [(entry, delta) for entry, delta in ended if delta.finish == "error"]
        self._settle(spans, over, {id(entry) for entry, _ in bad})
        fine = [(entry, delta) for entry, delta in ended if delta.finish != "error"]
        for entry, _ in fine:
            self.ledger.publish(entry)
        self.end(fine)
        for entry, _ in bad:
            self.ledger.disown(entry)
        self.end(bad, spoilt=True)
        for entry in rows:
            self.ledger.shed(entry)
        if guesser and guess:
            with suppress(Exception):
                guesser.guess(guess)

    def _choose(self, done: Done) -> Iterable[tuple[Entry, list[Choice]]]:
        """Choose for all at once; if that fails, for each alone, to find whose fault it is."""
        if done.logits is None:
            return
        try:
            choices = self.chooser.choose(done.logits, done.rows)
        except Exception:
            choices = []
            for n in range(len(done.rows)):
                try:
                    choices += self.chooser.choose(done.logits[n : n + 1], done.rows[n : n + 1])
                except Exception as error:
                    choices.append(Choice(None, code="internal_error", problem=_told(error)))
        pairs = zip(done.rows, choices, strict=True)
        for _, group in groupby(pairs, key=lambda pair: id(pair[0].entry)):
            mine = list(group)
            yield mine[0][0].entry, [choice for _, choice in mine]

    def _take(self, entry: Entry, choices: list[Choice], ended: Ended) -> None:
        """Take in one id, and those behind it as long as the guesses were right."""
        draft, entry.draft = entry.draft, []
        self.drafted += len(draft)
        delta = Delta(entry.id, entry.choice)
        if entry.request.want.prompt and entry.written == 0:
            delta.prompt_logp = list(entry.prompt_logp)
        for n, choice in enumerate(choices):
            broken = (choice.code, choice.problem) if choice.token is None else None
            last = False
            try:
                if choice.token is not None:
                    kind = entry.thoughts.kind(choice.token)
                    if n and kind != delta.kind:
                        self.told.append(delta)
                        delta = Delta(entry.id, entry.choice)
                    if kind != entry.kind and entry.writer and (held := entry.writer.flush()):
                        self.told.append(Delta(entry.id, entry.choice, text=held, kind=entry.kind))
                    entry.kind = kind
                    last = entry.accept(choice.token, choice.logp, choice.top, delta)
            except Exception as error:
                broken = "internal_error", str(error) or type(error).__name__
            if broken:
                if delta.token_ids:
                    self.told.append(delta)
                ended.append((entry, entry.failed(*broken)))
                return
            if last:
                ended.append((entry, delta))
                return
            if n == len(draft) or draft[n] != choice.token:
                break
            self.accepted += 1
        self.told.append(delta)

    def _advance(self, entry: Entry, known: int, guessed: int) -> bool:
        """Count what a row has computed; false if its state is to stay as it was before.

        A state cannot go back by a few tokens: where a guess was wrong, the ids in between are read
        again, with the next.
        """
        right = len(entry.known) - known - 1  # guesses that came true
        whole = not self.ledger.stateful or right == guessed
        if whole:
            entry.computed = known + right
        return whole

    def _route(self, done: Done, starts: list[int]) -> None:
        """Note the experts of the tokens that are now computed, where they are wanted."""
        blocks = [[(span.entry, span.start) for span in spans] for spans in done.blocks]
        if done.plan.rows:
            blocks.insert(0, list(zip(done.plan.rows, starts, strict=True)))
        for rows, routes in zip(blocks, done.routes, strict=True):
            for (entry, start), own in zip(rows, routes, strict=True):
                if entry.request.want.routes:
                    # all but its last id have now been read, whether or not the state moved on
                    end = len(entry.known) - 1 - start
                    entry.routes += own[len(entry.routes) - start : end].unbind()
        for span in done.plan.spans:
            for entry in span.twins:
                entry.routes = list(span.entry.routes)

    def _settle(self, spans: Sequence[Span], over: set[int], bad: set[int]) -> None:
        """Let others find what was read, and seat those that have read it all."""
        joining: dict[int, tuple[list[Entry], list[Entry]]] = {}
        for span in spans:
            entry = span.entry
            if id(entry) not in bad:
                self.ledger.publish(entry)
            if span.last and not self.fixed:
                seated = self.scheduler.seat(entry, [e for e in span.twins if id(e) not in over])
                seated += [] if id(entry) in over else [entry]
                entries, sources = joining.setdefault(entry.computed, ([], []))
                entries += seated
                sources += [entry] * len(seated)
            self.ledger.shed(entry)
        more = sum(len(entries) for entries, _ in joining.values())
        if more:
            self.desk.reserve(len(self.desk.entries) + more, max(joining) + 1)
        for entries, sources in joining.values():
            if entries:
                self.scheduler.sit(entries, sources)

    def end(self, ended: Ended, *, spoilt: bool = False) -> None:
        """Let requests go, and tell it."""
        self.scheduler.vacate([entry for entry, _ in ended], spoilt=spoilt)
        for entry, delta in ended:
            if entry in self.scheduler.waiting:
                self.scheduler.waiting.remove(entry)
            if entry in (live := self.live.get(entry.id, [])):
                live.remove(entry)
            if not live:
                self.live.pop(entry.id, None)
            if entry.request.want.routes:
                delta.routes = entry.routed()
            self.told.append(delta)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
