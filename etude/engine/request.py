"""What is asked of the engine and what comes back; a request is checked before anything runs."""

import hashlib
import math
import operator
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from etude.errors import EtudeError
from etude.typing import Tensor

Priority = Literal["speech", "interactive", "batch"]
RANKS: dict[str, int] = {"speech": 0, "interactive": 1, "batch": 2}
Kind = Literal["reasoning", "content"]
Finish = Literal["stop", "length", "repetition", "cancelled", "deadline", "error"]
LogpKind = Literal["raw", "tempered", "processed"]

MAX_STOPS, MAX_STOP_LETTERS, MAX_BIASES, MAX_CHOICES = 16, 256, 1024, 256
COLD = 1e-5  # a lower temperature makes infinities of logits, and takes the likeliest token anyway
MOST = 2**31 - 1  # more than any vocabulary has, and a tensor holds it


def ids_of(found: Any, name: str = "prompt") -> tuple[int, ...]:
    """Read token ids given as any kind of integers.

    Raises:
        EtudeError: `name` is not a sequence of integers.
    """
    try:
        return tuple(map(operator.index, found))
    except TypeError as error:
        raise EtudeError(name, _shown(found), "token ids") from error


def signed(seed: int) -> int:
    """Bring an integer of any size into 64 signed bits."""
    return (seed + 2**63) % 2**64 - 2**63


def mixed(seed: int, *more: int) -> int:
    """A seed of its own for each other row of integers, in 64 signed bits."""
    text = array("q", [seed, *more]).tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _shown(value: Any) -> str:
    """A value in few letters, for an error."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out integers of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _whole(name: str, value: Any, least: float) -> int:
    try:
        found = operator.index(value)
    except TypeError as error:
        raise EtudeError(name, _shown(value), "a whole number") from error
    if found < least:
        raise EtudeError(name, _shown(found), f"at least {least}")
    return found


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    try:
        found = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer or a fraction beyond all floats
        found = math.inf
    # infinity is no bound that a request may ask for, and NaN compares false
    if not (math.isfinite(found) and low <= found <= high) or (open_low and found == low):
        known = "at least 0" if high == math.inf else f"from {low} to {high}"
        more = f", {low} apart" if open_low else ""
        raise EtudeError(name, _shown(value), f"a finite number {known}{more}")
    return found


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: bias, penalties, temperature, top-k, top-p, min-p, draw.

    Args:
        temperature: 0, or less than 1e-5, takes the likeliest token, the lowest id among equals.
        top_k: keep this many of the likeliest tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of likeliest tokens with this probability.
        min_p: keep tokens of at least this share of the likeliest one's probability.
        presence, frequency: penalties on generated ids, once and per occurrence.
        repetition: divides positive and multiplies negative logits of ids of prompt and answer.
        bias: added to the logits of these ids.
        seed: with the number of the answer and the position of a token, all that its draw depends
            on; the first answer is the same whatever `n`.
        n: answers; the prompt is read once for all of them.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        if len(self.bias) > MAX_BIASES:
            raise EtudeError("bias", f"{len(self.bias)} ids", f"at most {MAX_BIASES}")
        heat = _number("temperature", self.temperature, 0, math.inf)
        bias = [_number("bias", value, -100, 100) for value in self.bias.values()]
        # plain numbers: a fraction or a huge integer has no place in a tensor beside other requests
        for name, value in {
            "temperature": heat if heat >= COLD else 0.0,
            "top_k": min(_whole("top_k", self.top_k, -1), MOST),
            "top_p": _number("top_p", self.top_p, 0, 1, open_low=True),
            "min_p": _number("min_p", self.min_p, 0, 1),
            "presence": _number("presence", self.presence, -2, 2),
            "frequency": _number("frequency", self.frequency, -2, 2),
            "repetition": _number("repetition", self.repetition, 0, 2, open_low=True),
            "bias": dict(zip(ids_of(self.bias, "bias"), bias, strict=True)),
            "seed": signed(_whole("seed", self.seed, -math.inf)),
            "n": _whole("n", self.n, 1),
        }.items():
            object.__setattr__(self, name, value)
        if self.n > MAX_CHOICES:
            raise EtudeError("n", _shown(self.n), f"at most {MAX_CHOICES}")

    @property
    def adjusts(self) -> bool:
        """Whether logits change before the temperature divides them."""
        return bool(self.bias or self.presence or self.frequency or self.repetition != 1)

    def key(self, choice: int) -> int:
        """What stands for the seed in the draws of one of the answers."""
        return mixed(self.seed, choice) if choice else self.seed


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
        _whole("repetition: tokens", self.tokens, 1)
        _number("repetition: probability", self.probability, 0, 1, open_low=True)


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
            _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            expected = f"at most max_tokens, {self.max_tokens}"
            raise EtudeError("min_tokens", str(self.min_tokens), expected)
        if self.seconds is not None:
            _number("seconds", self.seconds, 0, math.inf)


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
            _whole("thinking budget", self.budget, 0)


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
        _whole("top", self.top, 0)

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
    sampling: Sampling = Sampling()
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
            raise EtudeError("owner", _shown(self.owner), "a string")


# token id and log-probability, likeliest first
Top = list[tuple[int, float]]


@dataclass(slots=True)
class Failure:
    """Why a request ended with `error`: a short code, and one line for people."""

    code: str
    message: str


@dataclass(slots=True)
class Delta:
    """What one step adds to one answer.

    Args:
        id: of the request.
        choice: which of its answers.
        token_ids: new ids, the one that stopped it included.
        text: complete characters that became certain; empty without a tokenizer.
        kind: of tokens and text.
        logp: of each token, where wanted.
        top: of each token, where wanted.
        prompt_logp: of the prompt's ids from the second on, in the first delta, where wanted.
        routes: int16 [tokens, layers, active] of prompt and answer but for its last id, in the last
            delta, where wanted.
        finish: set in the last delta of an answer.
        failure: set when that is `error`.
    """

    id: str
    choice: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    kind: Kind = "content"
    logp: list[float] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    prompt_logp: list[float] | None = None
    routes: Tensor | None = None
    finish: Finish | None = None
    failure: Failure | None = None


@dataclass(slots=True)
class Answer:
    """All deltas of an answer in one."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reasoning: str = ""
    logp: list[float] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    prompt_logp: list[float] | None = None
    routes: Tensor | None = None
    finish: Finish | None = None
    failure: Failure | None = None

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
