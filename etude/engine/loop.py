"""Launch and collect: a plan becomes a pass, and the pass becomes ids and deltas."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby

from etude.engine.choose import Chooser, Row, told
from etude.engine.draft import Guesser
from etude.engine.entry import Choice, Entry, Span
from etude.engine.request import Delta
from etude.engine.runner import Done, Runner
from etude.engine.scheduler import Scheduler
from etude.typing import Tensor

Ended = list[tuple[Entry, Delta]]  # who is over, each with its last delta


class Loop:
    """What a step does after it is planned.

    Attributes:
        live: the answers that are not over, by the id of their request.
        told: deltas that the next step gives out.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler):
        self.runner, self.scheduler, self.desk = runner, scheduler, runner.desk
        self.ledger, self.fixed = scheduler.ledger, scheduler.settings.deterministic
        self.chooser, mtp, guesses = Chooser(), runner.model.mtp, self.desk.store.guesses
        self.guesser = Guesser(runner, mtp, guesses) if mtp is not None and guesses else None
        self.live: dict[str, list[Entry]] = {}
        self.told: list[Delta] = []

    def launch(self, spans: Sequence[Span]) -> None:
        """Run what is planned, and collect what it gives."""
        if self.fixed:
            for span in spans:
                self._apart([span])
            return
        try:
            done = self.runner.run(spans)
        except Exception:  # whose fault it was is found by halves
            rows = [span.entry for span in spans if self.desk.writes(span.entry)]
            if self.ledger.stateful and rows and not self.desk.careful:
                # some states have moved, some not: all are computed anew, and then with care
                for entry in rows:
                    self.scheduler.preempt(entry)
                self.desk.careful = True  # behind those, for an empty desk forgets it
                return
            self._apart(spans)
            self.desk.careful = False
        else:
            self._collect(done, self.guesser)

    def _apart(self, spans: Sequence[Span]) -> None:
        """Run spans without guesses, in halves if they fail, until the culprits are alone."""
        for span in spans:
            span.count -= span.guesses
            span.guesses, span.entry.draft = 0, []
        try:
            done = self.runner.run(spans)
        except Exception as error:
            if len(spans) == 1:
                entry = spans[0].entry
                self.end([(entry, entry.failed("internal_error", told(error)))], spoilt=True)
                return
            for part in (spans[: len(spans) // 2], spans[len(spans) // 2 :]):
                if here := [span for span in part if span.entry.row >= 0]:
                    self._apart(here)
        else:
            self._collect(done, None)

    def _collect(self, done: Done, guesser: Guesser | None) -> None:
        """Choose ids, tell them, and let requests move on."""
        ended: Ended = []
        choices = [] if done.logits is None else self._choose(done.logits, done.rows)
        pairs = zip(done.rows, choices, strict=True)
        for entry, group in groupby(pairs, key=lambda pair: pair[0].entry):
            self._take(entry, [choice for _, choice in group], ended)
        guess, spans = None, [span for view in done.views for span in view.spans]
        if guesser:
            with suppress(Exception):  # then there are no guesses
                guess = guesser.follow(done)
        self._advance(done)
        bad = [(entry, delta) for entry, delta in ended if delta.finish == "error"]
        fine = [(entry, delta) for entry, delta in ended if delta.finish != "error"]
        for entry, _ in bad:
            self.ledger.disown(entry)
        self._settle(spans, {id(entry) for entry, _ in ended}, {id(entry) for entry, _ in bad})
        for entry, _ in fine:
            self.ledger.publish(entry)
        self.end(fine)
        self.end(bad, spoilt=True)
        for span in spans:
            self.ledger.shed(span.entry)
        if guesser and guess:
            with suppress(Exception):
                guesser.guess(guess)

    def _choose(self, logits: Tensor, rows: Sequence[Row]) -> list[Choice]:
        """Choose for all at once; if that fails, for each alone, to find whose fault it is."""
        try:
            return self.chooser.choose(logits, rows)
        except Exception as error:
            if len(rows) == 1:
                return [Choice(None, code="internal_error", problem=told(error))]
        alone = [self._choose(logits[n : n + 1], rows[n : n + 1]) for n in range(len(rows))]
        return [choice for choices in alone for choice in choices]

    def _take(self, entry: Entry, choices: list[Choice], ended: Ended) -> None:
        """Take in one id, and those behind it as long as the guesses were right."""
        draft, entry.draft = entry.draft, []
        self.ledger.stats.drafted += len(draft)
        delta = Delta(entry.id, entry.choice)
        if entry.request.want.prompt and entry.written == 0:
            delta.prompt_logp = list(entry.prompt_logp)
        for n, choice in enumerate(choices):
            broken = (choice.code, choice.problem) if choice.token is None else None
            last = False
            try:
                if choice.token is not None:
                    kind = entry.thoughts.advance(choice.token)
                    if kind != entry.kind:
                        if delta.token_ids:
                            self.told.append(delta)
                            delta = Delta(entry.id, entry.choice)
                        if entry.writer and (held := entry.writer.flush()):
                            more = Delta(entry.id, entry.choice, text=held, kind=entry.kind)
                            self.told.append(more)
                    entry.kind = kind
                    last = entry.accept(choice.token, choice, delta)
            except Exception as error:
                broken = "internal_error", told(error)
            if broken:
                self.told += [delta] if delta.token_ids else []
                ended.append((entry, entry.failed(*broken)))
                return
            if last:
                ended.append((entry, delta))
                return
            if n == len(draft) or draft[n] != choice.token:
                break
            self.ledger.stats.accepted += 1
        self.told.append(delta)

    def _advance(self, done: Done) -> None:
        """Count what was computed, and note the experts of it, where they are wanted.

        A state cannot go back by a few tokens: where a guess was wrong it stays as it was before,
        and the ids in between are read again, with the next.
        """
        for view in done.views:
            kept = []
            for n, span in enumerate(view.spans):
                entry, read = span.entry, len(span.entry.known) - 1
                wrong = span.start + span.count - read if span.guesses else 0
                if not (wrong and self.ledger.stateful):
                    entry.computed = span.start + span.count - wrong
                    kept.append(n)
                if entry.request.want.routes and view.routes is not None:
                    part = slice(len(entry.routes) - span.start, read - span.start)
                    entry.routes += view.routes[n, part].unbind()
                    for twin in span.twins:
                        twin.routes = list(entry.routes)
            view.commit(kept)

    def _settle(self, spans: Sequence[Span], over: set[int], bad: set[int]) -> None:
        """Let others find what was read, and let those write that have read it all."""
        ready: list[Entry] = []
        for span in spans:
            entry = span.entry
            if self.desk.writes(entry):
                continue
            if id(entry) not in bad:
                self.ledger.publish(entry)
            if span.last and not self.fixed:
                ready += [] if id(entry) in over else [entry]
                ready += self.scheduler.follow(span, over)
        if ready:
            self.desk.write(ready)

    def end(self, ended: Ended, *, spoilt: bool = False) -> None:
        """Let requests go, and tell it."""
        self.ledger.leave([entry for entry, _ in ended], spoilt=spoilt)
        for entry, delta in ended:
            if entry in self.scheduler.waiting:
                self.scheduler.waiting.remove(entry)
            self.live[entry.id].remove(entry)
            if not self.live[entry.id]:
                del self.live[entry.id]
            if entry.request.want.routes:
                delta.routes = entry.routed()
            self.told.append(delta)
