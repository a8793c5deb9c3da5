"""One request while the engine has it: its tokens, what is computed of them, and what it holds."""

import math
from dataclasses import dataclass, field

import torch

from etude.engine.pages import root
from etude.engine.request import RANKS, Delta, Failure, Finish, GenRequest, Kind, Top
from etude.engine.stops import Writer
from etude.engine.thinking import Thoughts
from etude.typing import Tensor

HOLE = -1  # in a table: a page that was let go, for no layer of its kind reads it again


@dataclass(slots=True, eq=False)
class Entry:
    """State of one answer; everything that is its own is here, keyed by nothing else.

    Args:
        id: name of the request.
        choice: which of its answers.
        request: what was asked.
        number: order of arrival.
        arrived: time of arrival.
        known: ids of the prompt and of the answer so far.
        seed: with the position of a token, all that its draw depends on.
        writer: makes text of ids; None without a tokenizer.
        prompt: how many of the known ids are the prompt.
        limit: ids at which the answer ends.
        thoughts: counts reasoning.
        alike: digest of prompt and owner, equal for those that can share what one of them reads;
            empty where nothing is shared.
        sealed: the prompt is whole.
        running: it holds pages, and is worked on.
        computed: ids whose keys, values and states are there.
        pages: of each kind those that it holds, from the first token on, with holes.
        nodes: keys of its pages that are known to others, from the first on.
        routes: experts [layers, active] of each id that was computed, where they are wanted.
        slot: state slot while it reads, or -1.
        row: row of the desk while it writes, or -1.
        clean: ids that are in its pages; later ones are on the desk alone.
        marks: where a snapshot of the state is to be kept.
        draft: guesses at its next ids.
        skips: how often a later request was let in before it.
        prompt_logp: log-probabilities of the prompt's ids so far, where they are wanted.
        parked: an open prompt that waits until it grows or ends.
        touched: when its prompt last grew.
        kind: of its last id.
        sure: how many ids in a row were more probable than the bound on repetition.
    """

    id: str
    choice: int
    request: GenRequest
    number: int
    arrived: float
    known: list[int]
    seed: int
    writer: Writer | None = None
    prompt: int = 0
    limit: int = 0
    thoughts: Thoughts = field(default_factory=lambda: Thoughts(None))
    alike: bytes = b""
    sealed: bool = True
    running: bool = False
    computed: int = 0
    pages: list[list[int]] = field(default_factory=list)
    nodes: list[bytes] = field(default_factory=list)
    routes: list[Tensor] = field(default_factory=list)
    slot: int = -1
    row: int = -1
    clean: int = 0
    marks: set[int] = field(default_factory=set)
    draft: list[int] = field(default_factory=list)
    skips: int = 0
    prompt_logp: list[float] = field(default_factory=list)
    parked: bool = False
    touched: float = 0.0
    kind: Kind = "content"
    sure: int = 0

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Place among the waiting: priority, whole prompts before open ones, then arrival."""
        return RANKS[self.request.priority], not self.sealed, self.number

    @property
    def written(self) -> int:
        """Ids of the answer so far."""
        return len(self.known) - self.prompt

    @property
    def left(self) -> int:
        """Ids that can be computed now: the last of an open prompt waits until it is sealed."""
        return len(self.known) - self.computed - (not self.sealed)

    @property
    def parent(self) -> bytes:
        """Key of the last page that is known to others."""
        return self.nodes[-1] if self.nodes else root(self.request.owner)

    @property
    def leads(self) -> bool:
        """Whether others with the same prompt can go on from what it reads, or it from theirs."""
        return bool(self.alike) and self.written == 0

    def accept(self, token: int, logp: float | None, top: Top, delta: Delta) -> bool:
        """Add an id to the answer and to what is told of it; true if it is the last."""
        request = self.request
        self.known.append(token)
        delta.token_ids.append(token)
        if logp is not None:
            delta.logp.append(logp)
        if request.want.top:
            delta.top.append(top)
        delta.kind = self.thoughts.advance(token)
        stopped = token in request.stops.ids and self.written >= request.limits.min_tokens
        if self.writer is not None and not stopped:
            heed = delta.kind == "content" or request.stops.in_reasoning
            delta.text += self.writer.feed(token, heed=heed)
            stopped = self.writer.hit
        if stopped:
            delta.finish = "stop"
        elif self._repeats(logp):
            delta.finish = "repetition"
        elif len(self.known) >= self.limit:
            delta.finish = "length"
        if delta.finish and self.writer is not None:
            delta.text += self.writer.finish()
        return delta.finish is not None

    def _repeats(self, logp: float | None) -> bool:
        rule = self.request.limits.repetition
        if rule is None or logp is None:
            return False
        self.sure = self.sure + 1 if logp > math.log(rule.probability) else 0
        return self.sure >= rule.tokens

    def routed(self) -> Tensor:
        """Experts of all ids that were read, int16 [tokens, layers, active]."""
        with torch.inference_mode(False):  # one that training may keep, as any tensor
            if self.routes:
                return torch.stack(self.routes)
            return torch.empty(0, 0, 0, dtype=torch.int16)

    def failed(self, code: str, message: str) -> Delta:
        """Tell that it has ended with an error."""
        failure = Failure(code, " ".join(message.split()))
        return Delta(self.id, self.choice, finish="error", failure=failure)

    def over(self, finish: Finish) -> Delta:
        """End it from outside; text that was held back is told."""
        text = self.writer.finish() if self.writer is not None else ""
        return Delta(self.id, self.choice, text=text, kind=self.kind, finish=finish)
