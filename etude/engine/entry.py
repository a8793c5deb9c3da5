"""One request while the engine has it: its tokens, what is computed of them, and what it holds."""

import math
from dataclasses import dataclass, field

import torch

from etude.engine.pages import root
from etude.engine.request import RANKS, Delta, Failure, Finish, GenRequest, Kind, Thinking, Top
from etude.text.stops import Writer
from etude.typing import Tensor

HOLE = -1  # in a table: a page that was let go, for no layer of its kind reads it again


@dataclass(slots=True)
class Choice:
    """What was chosen for one place; `token` is None where nothing can be, for a `problem`."""

    token: int | None
    logp: float | None = None
    top: Top = field(default_factory=list)
    code: str = "numerical_error"
    problem: str = "the logits are not finite"


@dataclass(slots=True)
class Thoughts:
    """Whether an answer is inside of reasoning, how much of it there was, and when it must end."""

    rule: Thinking | None = None  # an answer without reasoning has none
    budget: int | None = None  # most tokens between the markers; None is no bound
    inside: bool = False
    spent: int = 0  # tokens of reasoning so far, forced ones apart
    forced: int = -1  # closing ids that were forced so far; -1 before the first

    @property
    def next(self) -> int | None:
        """The id that must come now, if the budget leaves no choice."""
        if self.rule is None or not self.inside:
            return None
        if self.forced >= 0:
            return self.rule.close[self.forced]
        over = self.budget is not None and self.spent >= self.budget
        return self.rule.close[0] if over else None

    def advance(self, token: int) -> Kind:
        """Take in an id of the answer; the markers count as reasoning, but not as spent."""
        rule = self.rule
        if rule is None:
            return "content"
        if not self.inside:
            if token != rule.open:
                return "content"
            self.inside, self.forced = True, -1  # opened again, it goes on counting
        elif self.next is not None:
            self.forced = max(self.forced, 0) + 1
            self.inside = self.forced < len(rule.close)
        elif token == rule.close[-1]:
            self.inside = False
        else:
            self.spent += 1
        return "reasoning"


@dataclass(slots=True, eq=False)
class Entry:
    """State of one answer; everything that is its own is here, keyed by nothing else."""

    id: str  # of the request
    choice: int  # which of its answers
    request: GenRequest
    number: int  # order of arrival
    arrived: float
    known: list[int]  # ids of the prompt and of the answer so far
    seed: int  # with the position of a token, all that its draw depends on
    writer: Writer | None = None  # makes text of ids; None without a tokenizer
    sealed: bool = True  # the prompt is whole
    prompt: int = 0  # how many of the known ids are the prompt
    limit: int = 0  # ids at which the answer ends
    thoughts: Thoughts = field(default_factory=Thoughts)
    alike: bytes = b""  # of prompt and owner, equal for those that can share one reading; or empty
    row: int = -1  # of the desk while it is worked on
    computed: int = 0  # ids whose keys, values and states are there
    pages: list[list[int]] = field(default_factory=list)  # of each kind, with holes
    nodes: list[bytes] = field(default_factory=list)  # keys of its first pages, which hold theirs
    marks: set[int] = field(default_factory=set)  # where a snapshot of the state is to be kept
    routes: list[Tensor] = field(default_factory=list)  # [layers, active] per computed id, if asked
    prompt_logp: list[float] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)  # guesses at its next ids
    skips: int = 0  # how often a later request was let in before it
    parked: bool = False  # an open prompt that waits until it grows or ends
    touched: float = 0.0  # when its prompt last grew
    kind: Kind = "content"  # of its last id
    sure: int = 0  # ids in a row more probable than the bound on repetition

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

    def begin(self, context: int, now: float) -> None:
        """Take what it knows for its prompt, which is new or has changed.

        Args:
            context: tokens that it can have.
            now: the time.
        """
        rule, most = self.request.thinking, self.request.limits.max_tokens
        self.prompt, self.touched, self.parked = len(self.known), now, False
        self.limit = context if most is None else min(context, self.prompt + most)
        self.thoughts = Thoughts()
        if rule is not None:
            budget, room = rule.budget, self.limit - self.prompt
            if budget == "auto":
                budget = max(0, room - min(256, room // 4) - len(rule.close) - (not rule.inside))
            self.thoughts = Thoughts(rule, budget, rule.inside)

    def accept(self, token: int, choice: Choice, delta: Delta) -> bool:
        """Add an id to the answer and to what is told of it; true if it is the last."""
        request = self.request
        self.known.append(token)
        delta.token_ids.append(token)
        delta.kind = self.kind
        if choice.logp is not None:
            delta.logp.append(choice.logp)
        if request.want.top:
            delta.top.append(choice.top)
        stopped = token in request.stops.ids and self.written >= request.limits.min_tokens
        if self.writer is not None and not stopped:
            heed = self.kind == "content" or request.stops.in_reasoning
            delta.text += self.writer.feed(token, heed=heed)
            stopped = self.writer.hit
        if stopped:
            delta.finish = "stop"
        elif self._repeats(choice.logp):
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


@dataclass(slots=True)
class Span:
    """Tokens of one request in a pass."""

    entry: Entry
    start: int  # tokens that it has computed before
    count: int
    guesses: int = 0  # how many of the tokens are guesses at what it will write
    last: bool = True  # whether its next id can be chosen then, and those of its twins
    twins: list[Entry] = field(default_factory=list)  # with the same prompt: they go on from there

    @property
    def ends(self) -> list[Entry]:
        """Whose next id is chosen after this."""
        return [self.entry, *self.twins] if self.last else []
