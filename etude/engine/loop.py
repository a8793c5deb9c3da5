"""Launch and collect: a plan becomes a pass, and the pass becomes ids and deltas."""

from collections.abc import Sequence
from contextlib import suppress

from etude.engine.choose import Choice, Chooser
from etude.engine.draft import Guesser, Start
from etude.engine.entry import Entry, failed
from etude.engine.request import Delta
from etude.engine.runner import Done, Plan, Runner, Span
from etude.engine.scheduler import Scheduler


class Loop:
    """What a step does after it is planned.

    Args:
        runner: runs passes.
        scheduler: what requests hold.
        guesses: ids to guess per step.

    Attributes:
        live: the requests that are not over, by id.
        told: deltas that the next step gives out.
        drafted, accepted: ids that were guessed, and guessed right.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, guesses: int):
        self.runner, self.scheduler, self.desk = runner, scheduler, runner.desk
        self.chooser = Chooser()
        self.guesser = Guesser(runner, guesses) if guesses else None
        self.live: dict[str, Entry] = {}
        self.told: list[Delta] = []
        self.drafted = self.accepted = 0

    def launch(self, plan: Plan) -> None:
        """Run a plan, and collect what it gives."""
        if self.scheduler.settings.deterministic:
            for span in plan.spans:
                self._apart(Plan(spans=[span]))
            return
        try:
            done = self.runner.run(plan)
        except Exception:  # whose fault it was is found by halves
            if self.scheduler.stateful and plan.rows and not self.desk.careful:
                # some states have moved, some not: all are computed anew, and then with care
                self.desk.left = {}
                for entry in plan.rows:
                    self.scheduler.preempt(entry)
                self.desk.careful = True  # behind those, for an empty desk forgets it
                return
            self._apart(plan)
            self.desk.careful = False
        else:
            self._collect(done, apart=False)

    def _apart(self, plan: Plan) -> None:
        """Run a plan without guesses, in halves if it fails, until the culprits are alone."""
        try:
            self.desk.left = {}
            done = self.runner.run(plan, apart=True)
        except Exception as error:
            units: list[Entry | Span] = [*plan.rows, *plan.spans]
            if len(units) == 1:
                entry = units[0].entry if isinstance(units[0], Span) else units[0]
                told = failed(entry, "internal_error", f"{type(error).__name__}: {error}")
                self.end([entry], [told], spoilt=True)
                return
            half = len(units) // 2
            for part in (units[:half], units[half:]):
                rows = [one for one in part if isinstance(one, Entry) and one.row >= 0]
                spans = [one for one in part if isinstance(one, Span) and one.entry.running]
                if rows or spans:
                    self._apart(Plan(rows, spans))
        else:
            self._collect(done, apart=True)

    def _collect(self, done: Done, *, apart: bool) -> None:
        """Choose ids, tell them, and let requests move on."""
        plan = done.plan
        if apart:
            for entry in plan.rows:
                entry.draft = []
        guesser = None if apart else self.guesser
        held = [(len(entry.known), len(entry.draft)) for entry in plan.rows] if guesser else []
        whole = {id(span.entry) for span in plan.spans if span.completes}
        ended = self._accept(done)
        over = {id(entry) for entry, _ in ended}
        guess = self._follow(done, whole, over) if guesser else None
        kept: list[int] | None = None
        if guesser:
            kept = [n for n, entry in enumerate(plan.rows) if self._advance(entry, *held[n])]
            kept = None if len(kept) == len(plan.rows) else kept
        else:
            for entry in plan.rows:
                entry.computed = len(entry.known) - 1
        for view in done.views:
            view.commit(kept if view is self.desk else None)
        bad = [entry for entry, delta in ended if delta.finish == "error"]
        self._settle(plan.spans, whole, over, {id(entry) for entry in bad})
        fine = [entry for entry, delta in ended if delta.finish != "error"]
        for entry in fine:
            self.scheduler.publish(entry)
        self.end(fine, [delta for _, delta in ended if delta.finish != "error"])
        for entry in bad:  # what it published may be as broken as it is
            self.scheduler.pages.disown(entry.pages)
        self.end(bad, [delta for _, delta in ended if delta.finish == "error"], spoilt=True)
        if guesser and guess:
            with suppress(Exception):  # then there are no guesses
                guesser.guess(guess)

    def _follow(self, done: Done, whole: set[int], over: set[int]) -> Start | None:
        """Let the block that guesses read on; if it fails, there are no guesses."""
        try:
            return self.guesser.follow(done, whole, over) if self.guesser else None
        except Exception:
            return None

    def _accept(self, done: Done) -> list[tuple[Entry, Delta]]:
        """Choose ids and take them in; return who ended, each with its last delta."""
        if not done.entries:
            return []
        choices = self._choose(done)
        ended: list[tuple[Entry, Delta]] = []
        if done.rows is None:
            for entry, choice in zip(done.entries, choices, strict=True):
                self._take(entry, [choice], ended)
            return ended
        at = 0
        while at < len(choices):
            entry, end = done.entries[at], at + 1
            while end < len(choices) and done.entries[end] is entry:
                end += 1
            self._take(entry, choices[at:end], ended)
            at = end
        return ended

    def _choose(self, done: Done) -> list[Choice]:
        """Choose for all at once; if that fails, for each alone, to find whose fault it is."""
        try:
            return self.chooser.choose(done.logits, done.entries, done.rows)
        except Exception:
            made = []
            for n, entry in enumerate(done.entries):
                row = None if done.rows is None else done.rows[n : n + 1]
                try:
                    made += self.chooser.choose(done.logits[n : n + 1], [entry], row)
                except Exception as error:
                    problem = f"{type(error).__name__}: {error}"
                    made.append(Choice(None, code="internal_error", problem=problem))
            return made

    def _take(self, entry: Entry, choices: list[Choice], ended: list[tuple[Entry, Delta]]) -> None:
        """Take in one id, and those behind it as long as the guesses were right."""
        draft, entry.draft = entry.draft, []
        self.drafted += len(draft)
        delta = Delta(entry.id)
        if entry.request.want.prompt and entry.written == 0:
            delta.prompt_logp = list(entry.prompt_logp)
        for n, choice in enumerate(choices):
            try:
                if choice.token is None:
                    raise _Broken(choice.code, choice.problem)
                if n and entry.thoughts.kind(choice.token) != delta.kind:
                    self.told.append(delta)
                    delta = Delta(entry.id)
                kind = entry.thoughts.kind(choice.token)
                if kind != entry.kind and entry.writer and (held := entry.writer.flush()):
                    self.told.append(Delta(entry.id, text=held, kind=entry.kind))
                entry.kind = kind
                last = entry.accept(choice.token, choice.logp, choice.top, delta)
            except Exception as error:
                code = error.code if isinstance(error, _Broken) else "internal_error"
                if delta.token_ids:
                    self.told.append(delta)
                ended.append((entry, failed(entry, code, str(error) or type(error).__name__)))
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
        whole = not self.scheduler.stateful or right == guessed
        if whole:
            entry.computed = known + right
        return whole

    def _settle(
        self, spans: Sequence[Span], whole: set[int], over: set[int], bad: set[int]
    ) -> None:
        """Count what was read, let others find it, and seat those that have read it all."""
        joining: dict[int, tuple[list[Entry], list[Entry]]] = {}
        for span in spans:
            entry = span.entry
            entry.computed += span.count
            if id(entry) not in bad:
                self.scheduler.publish(entry)
            if id(entry) not in whole or self.scheduler.settings.deterministic:
                continue
            going = [one for one in (entry, *entry.twins) if id(one) not in over]
            seated = self.scheduler.seat(entry, going)
            if seated:
                entries, sources = joining.setdefault(entry.computed, ([], []))
                entries += seated
                sources += [entry] * len(seated)
        if joining:
            more = sum(len(entries) for entries, _ in joining.values())
            self.desk.reserve(len(self.desk.entries) + more, max(joining) + 1)
        for entries, sources in joining.values():
            self.scheduler.sit(entries, sources)

    def end(self, entries: list[Entry], told: list[Delta], *, spoilt: bool = False) -> None:
        """Let requests go, and tell it."""
        if entries:
            self.scheduler.vacate(entries, spoilt=spoilt)
            for entry in entries:
                if entry in self.scheduler.waiting:
                    self.scheduler.waiting.remove(entry)
                self.live.pop(entry.id, None)
            self.told += told


class _Broken(Exception):
    """A fault of one request, with its code."""

    def __init__(self, code: str, told: str):
        super().__init__(told)
        self.code = code
