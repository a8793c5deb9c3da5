"""One request while the engine has it: its tokens, what is computed of them, and what it holds."""

from dataclasses import dataclass, field

from etude.engine.pages import root
from etude.engine.request import RANKS, Delta, Failure, Finish, GenRequest, Kind, Top
from etude.engine.stops import Writer
from etude.engine.thinking import Thoughts


@dataclass(slots=True, eq=False)
class Entry:
    """State of one request; everything that is its own is here, keyed by nothing else.

    Args:
        id: name of the request.
        request: what was asked.
        number: order of arrival.
        arrived: time of arrival.
        known: ids of the prompt and of the answer so far.
        prompt: how many of them are the prompt.
        limit: ids at which the answer ends.
        thoughts: counts reasoning.
        writer: makes text of ids; None without a tokenizer.
        sealed: the prompt is whole.
        running: it holds pages, and is worked on.
        computed: ids whose keys, values and states are there.
        pages: those that it holds, from the first token on.
        nodes: keys of its pages that are known to others, from the first on.
        slot: state slot while it reads, or -1.
        row: row of the desk while it writes, or -1.
        clean: ids that are in its pages; later ones are on the desk alone.
        marks: where a snapshot of the state is to be kept.
        draft: guesses at its next ids.
        twins: waiting requests with the same prompt, which will start from what this one reads.
        leader: whose twin it is.
        skips: how often a later request was let in before it.
        prompt_logp: log-probabilities of the prompt's ids so far, where they are wanted.
        finished: its last delta is made.
        parked: an open prompt that waits until it grows or ends.
        touched: when its prompt last grew.
        kind: of its last id.
    """

    id: str
    request: GenRequest
    number: int
    arrived: float
    known: list[int]
    prompt: int
    limit: int
    thoughts: Thoughts
    writer: Writer | None = None
    sealed: bool = True
    running: bool = False
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    nodes: list[bytes] = field(default_factory=list)
    slot: int = -1
    row: int = -1
    clean: int = 0
    marks: set[int] = field(default_factory=set)
    draft: list[int] = field(default_factory=list)
    twins: list["Entry"] = field(default_factory=list)
    leader: "Entry | None" = None
    skips: int = 0
    prompt_logp: list[float] = field(default_factory=list)
    finished: bool = False
    parked: bool = False
    touched: float = 0.0
    kind: Kind = "content"

    @property
    def rank(self) -> tuple[int, int]:
        """Place among the waiting: priority, then arrival."""
        return RANKS[self.request.priority], self.number

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
        if self.writer is not None:
            stops = request.stops
            heed = delta.kind == "content" or stops.in_reasoning
            if not stopped:
                delta.text += self.writer.feed(token, heed=heed)
                stopped = self.writer.hit
        if stopped:
            delta.finish = "stop"
        elif len(self.known) >= self.limit:
            delta.finish = "length"
        if delta.finish and self.writer is not None:
            delta.text += self.writer.finish()
        return delta.finish is not None


def failed(entry: Entry, code: str, message: str) -> Delta:
    """Tell that a request has ended with an error."""
    return Delta(entry.id, finish="error", failure=Failure(code, " ".join(message.split())))


def over(entry: Entry, finish: Finish) -> Delta:
    """End a request from outside; text that was held back is told."""
    text = entry.writer.finish() if entry.writer is not None else ""
    return Delta(entry.id, text=text, kind=entry.kind, finish=finish)


def budgeted(request: GenRequest, prompt: int, longest: int) -> int:
    """Ids at which the answer ends: the tokens asked for, or what the context holds."""
    asked = request.limits.max_tokens
    return longest if asked is None else min(longest, prompt + asked)
