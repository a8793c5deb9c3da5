"""What is asked of the engine and what comes back; a request is checked before anything runs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from etude.errors import EtudeError, number, shown, whole
from etude.ops.sample import Sampling as Sampling
from etude.ops.sample import ids_of
from etude.typing import Tensor

Priority = Literal["speech", "interactive", "batch"]
RANKS: dict[str, int] = {"speech": 0, "interactive": 1, "batch": 2}
Kind = Literal["reasoning", "content"]
Finish = Literal["stop", "length", "repetition", "cancelled", "deadline", "error"]
LogpKind = Literal["raw", "tempered", "processed"]
Top = list[tuple[int, float]]  # token id and log-probability, likeliest first

MAX_STOPS, MAX_STOP_LETTERS = 16, 256


@dataclass(frozen=True, slots=True)
class Repetition:
    """When an answer counts as repeating itself: it has long been certain of every next token.

    Args:
        tokens: so many in a row ...
        probability: ... each of more than this probability, of the distribution that
            `Want.logp` asks for.

    Source: MiniMax-M1, arXiv:2506.13585, section 3.2 (3,000 tokens, 0.99).
    """

    tokens: int
    probability: float

    def __post_init__(self) -> None:
        whole("repetition: tokens", self.tokens, 1)
        number("repetition: probability", self.probability, 0, 1, open_low=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an answer may be.

    Args:
        max_tokens: most new tokens, reasoning included; None is all that the context holds.
        min_tokens: stop ids are out of reach before this many.
        seconds: time from arrival after which the request ends with `deadline`; None is for ever.
        repetition: ends an answer that repeats itself, with `repetition`; None lets it.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    seconds: float | None = None
    repetition: Repetition | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)
        whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            expected = f"at most max_tokens, {self.max_tokens}"
            raise EtudeError("min_tokens", str(self.min_tokens), expected)
        if self.seconds is not None:
            number("seconds", self.seconds, 0)


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer before its limit.

    Args:
        ids: token ids; the one that came is in the ids of the answer and not in its text.
        texts: strings, matched across token borders; the first to be complete wins.
        shown: whether a string that was matched is part of the text.
        in_reasoning: whether strings are looked for in reasoning too.
        ignore_eos: the ids end nothing, as if there were none.
    """

    ids: Collection[int] = frozenset()
    texts: tuple[str, ...] = ()
    shown: bool = False
    in_reasoning: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        ids = frozenset(ids_of(self.ids, "stop ids"))
        object.__setattr__(self, "ids", frozenset() if self.ignore_eos else ids)
        if isinstance(self.texts, str):
            raise EtudeError("stop texts", "one string", "a sequence of strings")
        object.__setattr__(self, "texts", tuple(self.texts))
        if len(self.texts) > MAX_STOPS:
            raise EtudeError("stop texts", f"{len(self.texts)} of them", f"at most {MAX_STOPS}")
        for text in self.texts:
            if not 0 < len(text) <= MAX_STOP_LETTERS:
                expected = f"1 to {MAX_STOP_LETTERS}"
                raise EtudeError("stop texts", f"one of {len(text)} letters", expected)


@dataclass(frozen=True, slots=True)
class Thinking:
    """Markers of reasoning, and how much of it there may be.

    Args:
        close: ids that end reasoning, forced one by one when the budget is spent; the last is the
            marker itself, which also counts when the model writes it unasked.
        open: id that starts reasoning.
        inside: whether the prompt ends inside of reasoning.
        budget: most tokens between the markers, the forced ones apart; None is no bound, "auto"
            leaves min(256, max_tokens / 4) tokens for the answer.
    """

    close: tuple[int, ...]
    open: int | None = None
    inside: bool = True
    budget: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "close", ids_of(self.close, "thinking: close"))
        if not self.close:
            raise EtudeError("thinking", "no closing ids", "the marker that ends reasoning")
        if self.budget not in (None, "auto"):
            whole("thinking budget", self.budget, 0)


@dataclass(frozen=True, slots=True)
class Want:
    """What comes back beside tokens.

    Args:
        logp: log-probability of each token; None spares it. "raw" is of the model's own
            distribution; "tempered" of the one at the sampling temperature, with which a policy is
            trained; "processed" of the one that is drawn from, after bias, penalties, temperature
            and cuts, where a forced id may have -inf. Temperature 0 leaves the logits as they are.
        top: also that many of the likeliest ids at each position, with theirs: of the processed
            distribution where `logp` is of that, else of the raw one.
        prompt: also the raw log-probability of each id of the prompt; the request then reuses
            nothing.
        routes: also the experts that each id chose in each MoE layer of the trunk, for training
            with the same ones. The last id of an answer is never read, so it has none.
    """

    logp: LogpKind | None = None
    top: int = 0
    prompt: bool = False
    routes: bool = False

    def __post_init__(self) -> None:
        whole("top", self.top, 0)

    @property
    def ranked(self) -> LogpKind:
        """Of which distribution the likeliest ids are."""
        return "processed" if self.logp == "processed" else "raw"


@dataclass(frozen=True, slots=True)
class GenRequest:
    """One request.

    Args:
        prompt: token ids; may be empty while `open`.
        sampling, limits, stops, thinking, want: see there.
        id: unique among the live requests; None lets the engine choose.
        owner: only requests of one owner share what the engine remembers.
        priority: who goes first.
        open: the prompt will still grow; nothing is sampled before it is sealed.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = Limits()
    stops: Stops = Stops()
    thinking: Thinking | None = None
    want: Want = Want()
    id: str | None = None
    owner: str = ""
    priority: Priority = "interactive"
    open: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", ids_of(self.prompt))
        if self.priority not in RANKS:
            raise EtudeError("priority", repr(self.priority), f"one of {', '.join(RANKS)}")
        if self.limits.repetition is not None and self.want.logp is None:
            expected = "log-probabilities, which it counts"
            raise EtudeError("repetition", "wanted without logp", expected, "set Want(logp=...)")
        if not isinstance(self.owner, str):
            raise EtudeError("owner", shown(self.owner), "a string")


def misfit(
    ids: Sequence[int], vocab: int, longest: int, bound: str = "the model's length"
) -> tuple[str, str, str] | None:
    """What is wrong with a whole prompt: a code, what was found and expected; None if nothing is.

    Args:
        ids: the prompt.
        vocab: ids that there are.
        longest: tokens that prompt and answer can have, by `bound`.
    """
    if not len(ids):
        return "invalid_request", "is empty", "one token at least"
    if min(ids) < 0 or max(ids) >= vocab:
        return "invalid_request", f"has ids {min(ids)} to {max(ids)}", f"0 to {vocab - 1}"
    if len(ids) >= longest:
        found, expected = f"has {len(ids)} tokens", f"fewer than {bound}, {longest}"
        return "context_length_exceeded", found, expected
    return None


@dataclass(slots=True)
class Failure:
    """Why a request ended with `error`: a short code, and one line for people."""

    code: str
    message: str


@dataclass(slots=True, kw_only=True)
class Told:
    """What is told of an answer beside its ids.

    Args:
        text: complete characters that became certain; empty without a tokenizer.
        logp: of each token, where wanted.
        top: of each token, where wanted.
        prompt_logp: of the prompt's ids from the second on, where wanted.
        routes: int16 [tokens, layers, active] of prompt and answer but for its last id, at the end,
            where wanted.
        finish: set at the end.
        failure: set when that is `error`.
    """

    text: str = ""
    logp: list[float] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    prompt_logp: list[float] | None = None
    routes: Tensor | None = None
    finish: Finish | None = None
    failure: Failure | None = None


@dataclass(slots=True)
class Delta(Told):
    """What one step adds to one answer.

    Args:
        id: of the request.
        choice: which of its answers.
        token_ids: new ids, the one that stopped it included.
        kind: of tokens and text.
    """

    id: str
    choice: int = 0
    token_ids: list[int] = field(default_factory=list)
    kind: Kind = "content"


@dataclass(slots=True)
class Answer(Told):
    """All deltas of an answer in one; the text of its reasoning stands apart."""

    tokens: list[int] = field(default_factory=list)
    reasoning: str = ""

    def add(self, delta: Delta) -> None:
        """Take in one more delta."""
        self.tokens += delta.token_ids
        self.logp += delta.logp
        self.top += delta.top
        if delta.kind == "reasoning":
            self.reasoning += delta.text
        else:
            self.text += delta.text
        if delta.prompt_logp is not None:  # of a prompt of one id there are none, and that is told
            self.prompt_logp = delta.prompt_logp
        self.routes, self.finish, self.failure = delta.routes, delta.finish, delta.failure
