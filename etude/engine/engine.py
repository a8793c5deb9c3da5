"""The engine: many requests, one loop of plan, launch and collect."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from etude.engine.desk import Desk
from etude.engine.entry import Entry, budgeted, failed, over
from etude.engine.loop import Loop
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

MOST = 65_536  # tokens of all pages unless said otherwise


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
    lives, for it has laid them out anew and keeps what they computed.

    Args:
        model: a decoder; its weights decide device and dtype.
        tokenizer: makes text of ids, and stop strings possible; None takes the model's own.
        settings: see there.

    Raises:
        EtudeError: settings that make no sense, or guesses asked of a model that cannot.
    """

    def __init__(self, model: Decoder, tokenizer: Any = None, settings: Settings | None = None):
        self.settings = asked = settings or Settings()
        self.model = model
        own = model.published.tokenizer if model.published else None
        self.tokenizer = (tokenizer or own) if asked.text else None
        guesses = _guesses(model, asked)
        longest = model.arch.max_length
        pages = asked.pages or max(
            -(-longest // asked.page_size),
            min(asked.max_running * longest, MOST) // asked.page_size,
        )
        slots = asked.max_running + (asked.snapshots if asked.reuse else 0)
        size, ahead = asked.page_size, guesses > 0
        self.store = Store(model, pages=pages, size=size, slots=slots, ahead=ahead)
        self.desk = Desk(self.store)
        self.scheduler = Scheduler(self.store, self.desk, asked)
        self.runner = Runner(model, self.store, self.desk, guesses=ahead)
        self.loop = Loop(self.runner, self.scheduler, guesses)
        self.context = min(longest, pages * asked.page_size)
        self._number = self._steps = 0
        self._timed = False

    # What callers ask -----------------------------------------------------------------------------

    @torch.inference_mode()
    def submit(self, request: GenRequest) -> str:
        """Take a request in; what is wrong with it is told by its last delta.

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
        now, prompt = self.settings.clock(), list(request.prompt)
        limit = budgeted(request, len(prompt), self.context)
        writer = None
        if self.tokenizer is not None:
            stops = request.stops
            writer = Writer(self.tokenizer.stream(), stops.texts, shown=stops.shown)
        counting = thoughts(request.thinking, limit - len(prompt))
        entry = Entry(
            name, request, self._number, now, prompt, len(prompt), limit, counting, writer
        )
        entry.sealed, entry.touched = not request.open, now
        self._number += 1
        self._timed |= request.limits.seconds is not None
        self.loop.live[name] = entry
        if not self._refused(entry, prompt):
            self.scheduler.add(entry)
        return name

    @torch.inference_mode()
    def extend(self, id: str, ids: Sequence[int]) -> int:
        """Let an open prompt grow; return its length, which `rewind` takes as a mark.

        Raises:
            EtudeError: there is no such open prompt.
        """
        entry, more = self._open(id), list(ids_of(ids))
        if not self._refused(entry, [*entry.known, *more]):
            entry.known += more
            self._touch(entry)
        return len(entry.known)

    @torch.inference_mode()
    def seal(self, id: str) -> None:
        """End an open prompt: the answer begins.

        Raises:
            EtudeError: there is no such open prompt.
        """
        entry = self._open(id)
        entry.sealed = True
        if not self._refused(entry, entry.known):
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
        del entry.known[mark:]
        if entry.computed > max(mark - 1, 0):
            # what is known of the prompt is found again by its content
            self.scheduler.preempt(entry)
        self._touch(entry)

    @torch.inference_mode()
    def cancel(self, id: str) -> None:
        """End a request now; one that is over already is left alone."""
        entry = self.loop.live.get(id)
        if entry is not None:
            self.loop.end([entry], [over(entry, "cancelled")])

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
            self.loop.launch(plan)
        if self.settings.debug:
            self.check()
        told, self.loop.told = self.loop.told, []
        return told

    def run(self, requests: Sequence[GenRequest]) -> list[Answer]:
        """Answer requests and wait for all of them; nothing else is told meanwhile.

        Returns:
            One answer per request, in their order.

        Raises:
            EtudeError: one of them is open, so that nobody could seal it.
        """
        if any(request.open for request in requests):
            raise EtudeError("run", "an open prompt", "whole ones", "submit it, and turn `step`")
        names: list[str] = []
        try:
            for request in requests:
                names.append(self.submit(request))
            answers = {name: Answer() for name in names}
            left = len(answers)
            while left:
                for delta in self.step():
                    if delta.id in answers:
                        answers[delta.id].add(delta)
                        left -= delta.finish is not None
        finally:
            self._drop(names)
        return [answers[name] for name in names]

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
        plan, drafts = self.scheduler, (self.loop.drafted, self.loop.accepted)
        held = plan.slots.count - plan.slots.free
        sizes = len(plan.waiting), len(plan.reading), len(self.desk.entries)
        reuse = plan.pages.asked, plan.pages.hits
        kept = plan.pages.held, held, len(plan.snapshots), plan.preempted
        return Stats(*sizes, *kept, *reuse, *drafts, self._steps)

    def check(self) -> None:
        """Compare all counts with what the live requests hold.

        Raises:
            EtudeError: a page, slot or row is lost, or has two owners.
        """
        self.scheduler.check(list(self.loop.live.values()))

    def _expire(self) -> None:
        if not self._timed:
            return
        now, live = self.settings.clock(), self.loop.live.values()
        timed = [
            (e, e.request.limits.seconds) for e in live if e.request.limits.seconds is not None
        ]
        late = [entry for entry, seconds in timed if now - entry.arrived >= seconds]
        self._timed = len(timed) > len(late)
        self.loop.end(late, [over(entry, "deadline") for entry in late])

    def _refused(self, entry: Entry, ids: list[int]) -> bool:
        """End a request whose prompt cannot be read, or that speaks of ids that there are not."""
        vocab, code, told = self.model.arch.vocab, "invalid_request", ""
        stray = [id for id in _named(entry.request) if not 0 <= id < vocab]
        if stray:
            told = f"bias or thinking: has id {stray[0]}, expected 0 to {vocab - 1}"
        elif entry.sealed and not ids:
            told = "prompt: is empty, expected one token at least"
        elif ids and not 0 <= min(ids) <= max(ids) < vocab:
            told = f"prompt: has ids {min(ids)} to {max(ids)}, expected 0 to {vocab - 1}"
        elif len(ids) >= self.context:
            code = "context_length_exceeded"
            bound = "the model's length" if self.context == self.model.arch.max_length else "pages"
            told = (
                f"prompt: has {len(ids)} tokens, expected fewer than {bound} allow, {self.context}"
            )
        if told:
            self.loop.end([entry], [failed(entry, code, told)])
        return bool(told)

    def _open(self, id: str) -> Entry:
        entry = self.loop.live.get(id)
        if entry is None or entry.sealed:
            found = "no such request" if entry is None else "its prompt is sealed"
            raise EtudeError("request", f"{id!r}: {found}", "a live request that is open")
        return entry

    def _touch(self, entry: Entry) -> None:
        """Note that an open prompt has changed."""
        entry.prompt = len(entry.known)
        entry.limit = budgeted(entry.request, entry.prompt, self.context)
        entry.thoughts = thoughts(entry.request.thinking, entry.limit - entry.prompt)
        entry.touched, entry.parked = self.settings.clock(), False
        if entry.running:
            self.scheduler.mark(entry)


def _named(request: GenRequest) -> list[int]:
    """Ids that a request gives or forces, beside its prompt."""
    return [*request.sampling.bias, *(request.thinking.close if request.thinking else ())]


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
