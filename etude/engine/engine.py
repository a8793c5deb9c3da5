"""The engine: many requests, one loop of plan, launch and collect."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from etude.engine.desk import Desk
from etude.engine.entry import Entry
from etude.engine.ledger import Ledger, Stats
from etude.engine.loop import Loop
from etude.engine.pages import follow, root
from etude.engine.request import Answer, Delta, GenRequest, misfit
from etude.engine.runner import Runner
from etude.engine.scheduler import Scheduler
from etude.engine.settings import Settings
from etude.engine.store import Store
from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.nn.int8 import int8
from etude.nn.moe import Router
from etude.ops import native
from etude.ops.sample import ids_of
from etude.text.stops import Writer


class Engine:
    """Answers requests; `step` makes every live one advance.

    It does no work of its own accord: `run` and `stream` turn its loop for a caller who waits, and
    a server turns it itself. One thread at a time may use it. The weights must not change while it
    lives, for it has laid them out anew and keeps what they computed; see `renew`.

    Args:
        model: a decoder; its weights decide device and dtype.
        tokenizer: makes text of ids, and stop strings possible; None takes the model's own.
        settings: see there.

    Raises:
        EtudeError: settings that make no sense, or guesses asked of a model that cannot.
    """

    def __init__(self, model: Decoder, tokenizer: Any = None, settings: Settings | None = None):
        self.settings = asked = settings or Settings()
        self.model = model = int8(model) if asked.weights == "int8" else model
        self.kernels = model.kernels or (asked.kernels and native.build())
        own = model.published.tokenizer if model.published else None
        self.tokenizer = (tokenizer or own) if asked.text else None
        self.store = Store(model, asked)
        self.desk = Desk(self.store)
        self.ledger = Ledger(self.desk, asked)
        self.scheduler = Scheduler(self.ledger)
        self.loop = Loop(Runner(model, self.desk), self.scheduler)
        self.context = self.store.context
        self.routed = any(isinstance(part, Router) for part in model.layers.modules())
        self._number = 0

    def renew(self) -> None:
        """Take in that the model's weights have changed: live answers go on where they are.

        What the old weights computed of them stays (the in-flight update of Nemotron 3 Super,
        arXiv:2604.12374). Later prompts must come under another `owner`, or they would find it too.

        Raises:
            EtudeError: the engine has a rounded copy of its own, which would not change.
        """
        if self.settings.weights == "int8":
            raise EtudeError("engine", "int8 weights do not change", do="make a new engine")
        self.store.forget()

    @torch.inference_mode()
    def submit(self, request: GenRequest) -> str:
        """Take a request in; what is wrong with it is told by the last delta of its answers.

        Returns:
            Its id.

        Raises:
            EtudeError: its id is that of a live request, or it has stop strings and there is no
                tokenizer.
        """
        name = request.id if request.id is not None else f"request-{self._number}"
        if name in self.loop.live:
            raise EtudeError("request", f"id {name!r} is taken", "an id of its own")
        if request.stops.texts and self.tokenizer is None:
            raise EtudeError("stop texts", "this model has no tokenizer", "stop ids")
        choices = range(1 if request.open else request.sampling.n)
        self._begin(name, request, choices, request.prompt, sealed=not request.open)
        return name

    def _begin(
        self, name: str, request: GenRequest, choices: range, ids: Sequence[int], *, sealed: bool
    ) -> None:
        """Let answers of a request wait for their turn."""
        stops, writer = request.stops, None
        for choice in choices:
            if self.tokenizer is not None:
                writer = Writer(self.tokenizer.stream(), stops.texts, shown=stops.shown)
            seed, now = request.sampling.key(choice), self.settings.clock()
            entry = Entry(name, choice, request, self._number, now, [], seed, writer, sealed)
            self._number += 1
            self.loop.live.setdefault(name, []).append(entry)
            if self._grow(entry, ids):
                self.scheduler.add(entry)

    @torch.inference_mode()
    def extend(self, id: str, ids: Sequence[int]) -> int:
        """Let an open prompt grow; return its length, which `rewind` takes as a mark.

        Raises:
            EtudeError: there is no such open prompt.
        """
        entry = self._open(id)
        self._grow(entry, ids_of(ids))
        return len(entry.known)

    @torch.inference_mode()
    def seal(self, id: str) -> None:
        """End an open prompt: its answers begin.

        Raises:
            EtudeError: there is no such open prompt.
        """
        entry = self._open(id)
        entry.sealed = True
        if entry.row < 0:  # whole prompts wait before open ones
            self.scheduler.waiting.remove(entry)
            self.scheduler.add(entry)
        others = range(1, entry.request.sampling.n)
        self._begin(id, entry.request, others, entry.known, sealed=True)
        self._grow(entry)

    @torch.inference_mode()
    def rewind(self, id: str, mark: int) -> None:
        """Drop what was added to an open prompt behind a length that it once had.

        Raises:
            EtudeError: there is no such open prompt, or it was never so short.
        """
        entry = self._open(id)
        if not 0 <= mark <= len(entry.known):
            raise EtudeError("rewind", str(mark), f"0 to {len(entry.known)}")
        del entry.known[mark:], entry.routes[mark:]
        if entry.computed > max(mark - 1, 0):
            # what is known of the prompt is found again by its content
            self.scheduler.preempt(entry)
        self._grow(entry)

    @torch.inference_mode()
    def cancel(self, id: str) -> None:
        """End a request now; one that is over already is left alone."""
        self.loop.end([(entry, entry.over("cancelled")) for entry in self.loop.live.get(id, ())])

    @property
    def busy(self) -> bool:
        """Whether a step would do something, or has something to tell."""
        waits = any(not entry.parked for entry in self.scheduler.waiting)
        reads = any(not self.scheduler.rests(one) for one in self.desk.readers)
        return bool(self.loop.told or self.desk.entries or waits or reads)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Let every live request advance: plan, launch, collect.

        Returns:
            What is new of each.
        """
        self._expire()
        if spans := self.scheduler.plan():
            self.ledger.stats.steps += 1
            with native.lent(self.kernels):
                self.loop.launch(spans)
        if self.settings.debug:
            self.check()
        told, self.loop.told = self.loop.told, []
        return told

    def run(
        self, requests: Sequence[GenRequest], tell: Callable[[int, Delta], None] | None = None
    ) -> list[Answer]:
        """Answer requests and wait for all of them.

        Args:
            requests: whole prompts.
            tell: called with the number of an answer and what is new of it, step by step, and
                within a step in the order of the answers; what it raises ends all of them.

        Returns:
            The answers of the requests in their order, those of one side by side.

        Raises:
            EtudeError: one of them is open, so that nobody could seal it.
        """
        if any(request.open for request in requests):
            raise EtudeError("run", "an open prompt", "whole ones", "submit it, and turn `step`")
        answers: dict[tuple[str, int], Answer] = {}
        names: set[str] = set()
        try:
            for request in requests:
                names.add(name := self.submit(request))
                answers |= {(name, n): Answer() for n in range(request.sampling.n)}
            rows = {key: row for row, key in enumerate(answers)}
            for deltas in self._turn(names):
                for delta in sorted(deltas, key=lambda one: rows[one.id, one.choice]):
                    answers[delta.id, delta.choice].add(delta)
                    if tell is not None:
                        tell(rows[delta.id, delta.choice], delta)
        finally:
            self._drop(names)
        return list(answers.values())

    def stream(self, request: GenRequest) -> Iterator[Delta]:
        """Answer one request piece by piece; closing the iterator cancels it."""
        names = {self.submit(request)}
        try:
            for deltas in self._turn(names):
                yield from deltas
        finally:
            self._drop(names)

    def _turn(self, names: Collection[str]) -> Iterator[list[Delta]]:
        """What each step tells of some requests, until all are over; what is others' waits."""
        while self.loop.live.keys() & names or any(one.id in names for one in self.loop.told):
            told = self.step()
            self.loop.told = [delta for delta in told if delta.id not in names]
            yield [delta for delta in told if delta.id in names]

    def _drop(self, names: Collection[str]) -> None:
        for name in names:
            self.cancel(name)
        self.loop.told = [delta for delta in self.loop.told if delta.id not in names]

    def stats(self) -> Stats:
        """Counts since the engine was made, and what is held now."""
        tables = self.ledger.tables
        return replace(
            self.ledger.stats,
            waiting=len(self.scheduler.waiting),
            reading=len(self.desk.readers),
            writing=len(self.desk.entries),
            pages=sum(pages.held for pages in tables),
            snapshots=tables[0].snapshots,
        )

    def check(self) -> None:
        """Compare all counts with what the live requests hold.

        Raises:
            EtudeError: a page, slot or row is lost, or has two owners.
        """
        self.ledger.check([entry for entries in self.loop.live.values() for entry in entries])

    def _expire(self) -> None:
        live = [entry for entries in self.loop.live.values() for entry in entries]
        if timed := [one for one in live if one.request.limits.seconds is not None]:
            now = self.settings.clock()
            late = [one for one in timed if now - one.arrived >= (one.request.limits.seconds or 0)]
            self.loop.end([(entry, entry.over("deadline")) for entry in late])

    def _grow(self, entry: Entry, more: Sequence[int] = ()) -> bool:
        """Take in that a prompt is new or has changed; true unless that ends its request.

        Then it cannot be read, or the request asks for what there is not.
        """
        arch, code, told, request = self.model.arch, "invalid_request", "", entry.request
        ids = [*entry.known, *more]
        bound = "the model's length" if self.context == arch.max_length else "pages allow"
        given = [*request.sampling.bias, *(request.thinking.close if request.thinking else ())]
        stray = [id for id in given if not 0 <= id < arch.vocab]
        if stray:
            told = f"bias or thinking: has id {stray[0]}, expected 0 to {arch.vocab - 1}"
        elif request.want.routes and not self.routed:
            told = "routes: are wanted, but this model has no experts"
        elif (ids or entry.sealed) and (wrong := misfit(ids, arch.vocab, self.context, bound)):
            code, told = wrong[0], f"prompt: {wrong[1]}, expected {wrong[2]}"
        if told:
            self.loop.end([(entry, entry.failed(code, told))])
            return False
        entry.known = ids
        entry.begin(self.context, self.settings.clock())
        if entry.sealed and not (self.settings.deterministic or request.want.prompt):
            entry.alike = follow(root(request.owner), [*ids, -1 - request.want.routes])
        if entry.row >= 0:
            self.ledger.mark(entry)
        return True

    def _open(self, id: str) -> Entry:
        live = self.loop.live.get(id)
        if not live or live[0].sealed:
            found = "no such request" if not live else "its prompt is sealed"
            raise EtudeError("request", f"{id!r}: {found}", "a live request that is open")
        return live[0]
