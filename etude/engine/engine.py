"""The engine: many requests, one loop of plan, launch and collect."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from etude.engine.desk import Desk
from etude.engine.entry import Entry
from etude.engine.ledger import Ledger
from etude.engine.loop import Loop
from etude.engine.pages import follow, root
from etude.engine.request import Answer, Delta, GenRequest, ids_of
from etude.engine.runner import Runner
from etude.engine.scheduler import Scheduler
from etude.engine.settings import Settings
from etude.engine.stops import Writer
from etude.engine.store import Store, layers
from etude.engine.thinking import thoughts
from etude.errors import EtudeError
from etude.nn.cache import State
from etude.nn.decoder import Decoder
from etude.nn.int8 import int8
from etude.nn.moe import Router
from etude.ops import native


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the engine was made, and what is held now."""

    waiting: int
    reading: int
    writing: int
    pages: int
    slots: int
    snapshots: int
    preempted: int
    prompt_tokens: int
    reused_tokens: int
    drafted: int
    accepted: int
    steps: int


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
        guesses = _guesses(model, asked)
        self.store = Store(model, asked, guesses=guesses)
        self.desk = Desk(self.store)
        self.ledger = Ledger(self.store, self.desk, asked)
        self.scheduler = Scheduler(self.ledger, self.desk, asked)
        self.runner = Runner(model, self.store, self.desk, guesses=guesses > 0)
        self.loop = Loop(self.runner, self.scheduler, guesses)
        self.context = self.store.context
        self.routed = any(isinstance(part, Router) for part in model.layers.modules())
        self._number = self._steps = 0
        self._timed = False

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

    # What callers ask -----------------------------------------------------------------------------

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
        self._timed |= request.limits.seconds is not None
        for choice in range(1 if request.open else request.sampling.n):
            self._begin(name, choice, request, list(request.prompt), sealed=not request.open)
        return name

    def _begin(
        self, name: str, choice: int, request: GenRequest, prompt: list[int], *, sealed: bool
    ) -> None:
        """Let one answer of a request wait for its turn."""
        now, stops, writer = self.settings.clock(), request.stops, None
        if self.tokenizer is not None:
            writer = Writer(self.tokenizer.stream(), stops.texts, shown=stops.shown)
        seed = request.sampling.key(choice)
        entry = Entry(name, choice, request, self._number, now, prompt, seed, writer, sealed=sealed)
        self._number += 1
        self.loop.live.setdefault(name, []).append(entry)
        if self._fits(entry, prompt):
            self._touch(entry)
            self.scheduler.add(entry)

    @torch.inference_mode()
    def extend(self, id: str, ids: Sequence[int]) -> int:
        """Let an open prompt grow; return its length, which `rewind` takes as a mark.

        Raises:
            EtudeError: there is no such open prompt.
        """
        entry, more = self._open(id), list(ids_of(ids))
        if self._fits(entry, [*entry.known, *more]):
            entry.known += more
            self._touch(entry)
        return len(entry.known)

    @torch.inference_mode()
    def seal(self, id: str) -> None:
        """End an open prompt: its answers begin.

        Raises:
            EtudeError: there is no such open prompt.
        """
        entry = self._open(id)
        entry.sealed = True
        if not entry.running:  # whole prompts wait before open ones
            self.scheduler.waiting.remove(entry)
            self.scheduler.add(entry)
        for choice in range(1, entry.request.sampling.n):
            self._begin(id, choice, entry.request, list(entry.known), sealed=True)
        if self._fits(entry, entry.known):
            self._touch(entry)

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
        self._touch(entry)

    @torch.inference_mode()
    def cancel(self, id: str) -> None:
        """End a request now; one that is over already is left alone."""
        self.loop.end([(entry, entry.over("cancelled")) for entry in self.loop.live.get(id, ())])

    @property
    def busy(self) -> bool:
        """Whether a step would do something, or has something to tell."""
        waits = any(not entry.parked for entry in self.scheduler.waiting)
        reads = any(not self.scheduler.rests(one) for one in self.scheduler.reading)
        return bool(self.loop.told or self.desk.entries or waits or reads)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """Let every live request advance: plan, launch, collect.

        Returns:
            What is new of each.
        """
        self._expire()
        plan = self.scheduler.plan()
        if plan.rows or plan.spans:
            self._steps += 1
            with native.lent(self.kernels):
                self.loop.launch(plan)
        if self.settings.debug:
            self.check()
        told, self.loop.told = self.loop.told, []
        return told

    def run(self, requests: Sequence[GenRequest]) -> list[Answer]:
        """Answer requests and wait for all of them; nothing else is told meanwhile.

        Returns:
            The answers of the requests in their order, those of one side by side.

        Raises:
            EtudeError: one of them is open, so that nobody could seal it.
        """
        if any(request.open for request in requests):
            raise EtudeError("run", "an open prompt", "whole ones", "submit it, and turn `step`")
        answers: dict[tuple[str, int], Answer] = {}
        names: list[str] = []
        try:
            for request in requests:
                names.append(self.submit(request))
                answers |= {(names[-1], n): Answer() for n in range(request.sampling.n)}
            left = len(answers)
            while left:
                for delta in self.step():
                    if (answer := answers.get((delta.id, delta.choice))) is not None:
                        answer.add(delta)
                        left -= delta.finish is not None
        finally:
            self._drop(names)
        return list(answers.values())

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            self.cancel(name)
        self.loop.told = [delta for delta in self.loop.told if delta.id not in names]

    def stream(self, request: GenRequest) -> Iterator[Delta]:
        """Answer one request piece by piece; closing the iterator cancels it."""
        name = self.submit(request)
        try:
            while name in self.loop.live or any(one.id == name for one in self.loop.told):
                told = self.step()
                # what is others' waits for them
                self.loop.told = [delta for delta in told if delta.id != name]
                yield from [delta for delta in told if delta.id == name]
        finally:
            self._drop([name])

    def stats(self) -> Stats:
        """Counts since the engine was made, and what is held now."""
        plan, held = self.scheduler, self.ledger
        return Stats(
            waiting=len(plan.waiting),
            reading=len(plan.reading),
            writing=len(self.desk.entries),
            pages=sum(pages.held for pages in held.tables),
            slots=self.settings.max_running - len(held.free),
            snapshots=held.tables[0].snapshots,
            preempted=plan.preempted,
            prompt_tokens=held.asked,
            reused_tokens=held.hits,
            drafted=self.loop.drafted,
            accepted=self.loop.accepted,
            steps=self._steps,
        )

    def check(self) -> None:
        """Compare all counts with what the live requests hold.

        Raises:
            EtudeError: a page, slot or row is lost, or has two owners.
        """
        self.ledger.check([entry for entries in self.loop.live.values() for entry in entries])

    def _expire(self) -> None:
        if not self._timed:
            return
        now, live = self.settings.clock(), self.loop.live.values()
        timed = [
            one for entries in live for one in entries if one.request.limits.seconds is not None
        ]
        late = [one for one in timed if now - one.arrived >= (one.request.limits.seconds or 0)]
        self._timed = len(timed) > len(late)
        self.loop.end([(entry, entry.over("deadline")) for entry in late])

    def _fits(self, entry: Entry, ids: list[int]) -> bool:
        """End a request whose prompt cannot be read, or that asks for what there is not."""
        arch, code, told, request = self.model.arch, "invalid_request", "", entry.request
        given = [*request.sampling.bias, *(request.thinking.close if request.thinking else ())]
        stray = [id for id in given if not 0 <= id < arch.vocab]
        if stray:
            told = f"bias or thinking: has id {stray[0]}, expected 0 to {arch.vocab - 1}"
        elif request.want.routes and not self.routed:
            told = "routes: are wanted, but this model has no experts"
        elif entry.sealed and not ids:
            told = "prompt: is empty, expected one token at least"
        elif ids and not 0 <= min(ids) <= max(ids) < arch.vocab:
            told = f"prompt: has ids {min(ids)} to {max(ids)}, expected 0 to {arch.vocab - 1}"
        elif len(ids) >= self.context:
            code = "context_length_exceeded"
            bound = "the model's length" if self.context == arch.max_length else "pages"
            told = (
                f"prompt: has {len(ids)} tokens, expected fewer than {bound} allow, {self.context}"
            )
        if told:
            self.loop.end([(entry, entry.failed(code, told))])
        return not told

    def _open(self, id: str) -> Entry:
        live = self.loop.live.get(id)
        if not live or live[0].sealed:
            found = "no such request" if not live else "its prompt is sealed"
            raise EtudeError("request", f"{id!r}: {found}", "a live request that is open")
        return live[0]

    def _touch(self, entry: Entry) -> None:
        """Note that a prompt is new or has changed."""
        request, entry.prompt = entry.request, len(entry.known)
        asked = request.limits.max_tokens
        entry.limit = self.context if asked is None else min(self.context, entry.prompt + asked)
        entry.thoughts = thoughts(request.thinking, entry.limit - entry.prompt)
        entry.touched, entry.parked = self.settings.clock(), False
        if entry.sealed and not (self.settings.deterministic or request.want.prompt):
            entry.alike = follow(root(request.owner), [*entry.known, -1 - request.want.routes])
        if entry.running:
            self.ledger.mark(entry)


def _guesses(model: Decoder, asked: Settings) -> int:
    """Guesses per step: as asked, or two where the model can guess."""
    held = layers(model, ahead=True)[-1] if model.mtp is not None else ()
    able = model.mtp is not None and not any(isinstance(slot, State) for slot in held)
    if asked.speculate is None:
        return 2 if able and not asked.deterministic else 0
    if asked.speculate and not able:
        found = "no MTP block of attention layers"
        raise EtudeError("engine: speculate", found, "one, or speculate = 0")
    return 0 if asked.deterministic else asked.speculate
