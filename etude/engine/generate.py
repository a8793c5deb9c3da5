"""Prompts in, new tokens out: the engine, for callers who have all prompts and wait for all.

What a row samples depends on its seed, its prompt and its position, never on its neighbours.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from etude.engine.engine import Engine
from etude.engine.request import (
    Delta,
    GenRequest,
    Limits,
    Sampling,
    Stops,
    Want,
    ids_of,
    mixed,
)
from etude.engine.settings import Settings
from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.typing import Tensor

ROWS = 256  # rows decoded together; on two CPU cores more rows give no more tokens a second
BUDGET = 2048  # tokens of a pass: as fast as more, in a quarter of the memory
PAGE = 64


@dataclass(slots=True)
class Completion:
    """What was written after one prompt.

    Args:
        tokens: new ids, with the stop token that ended them if one did.
        logp: log-probability of each, with the temperature applied.
        finish: "stop", "length" when the tokens asked for or the model's length ran out, or
            "repetition".
        routes: experts of prompt and answer as in `request.Delta`, where asked for.
    """

    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finish: str = "length"
    routes: Tensor | None = None

    def add(self, delta: Delta) -> bool:
        """Take in what is new; return whether that was all."""
        self.tokens += delta.token_ids
        self.logp += delta.logp
        self.finish, self.routes = delta.finish or self.finish, delta.routes
        return delta.finish is not None


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: SupportsIndex | Iterable[SupportsIndex] = 0,
    stop: Iterable[SupportsIndex] = (),
    on_token: Callable[[int, int], None] | None = None,
    weights: str = "stored",
    kernels: bool = False,
) -> list[Completion]:
    """Write after each prompt.

    Args:
        model: a decoder; its weights decide device and dtype.
        prompts: token ids, one list per row, of any lengths.
        max_tokens: most new tokens per row; fewer where the model's length ends first.
        temperature: 0 takes the likeliest token.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with this probability.
        seed: one for all rows, or one per row. Equal prompts with equal seeds write the same.
        stop: ids that end a row.
        on_token: called as (row, token) for each new token, step by step.
        weights, kernels: as in `Settings`; `nn.int8.int8_` rounds for more than one call.

    Returns:
        One completion per prompt, in their order.

    Raises:
        EtudeError: an empty prompt, an id outside the vocabulary, no room after a prompt,
            negative `max_tokens`, `stop` that are no ids, or logits that are not finite.
    """
    _check(model, prompts, max_tokens)
    seeds, stops = _seeds(seed, len(prompts)), Stops(ids_of(stop, "stop ids"))
    if not max_tokens or not prompts:
        return [Completion() for _ in prompts]
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    limits, want = Limits(max_tokens=max_tokens), Want(logp="tempered")
    requests = [
        GenRequest(prompt, Sampling(seed=keyed(one, prompt), **how), limits, stops, want=want)
        for prompt, one in zip(prompts, seeds, strict=True)
    ]
    return answer(model, requests, on_token=on_token, weights=weights, kernels=kernels)


def keyed(seed: int, prompt: Sequence[int]) -> int:
    """What the draws after a prompt depend on: one seed must not give all items of a test one draw.

    Args:
        seed: of the caller, of any size.
        prompt: token ids.
    """
    return mixed(seed & (2**63 - 1), *prompt)


def answer(
    model: Decoder,
    requests: Sequence[GenRequest],
    *,
    on_token: Callable[[int, int], None] | None = None,
    weights: str = "stored",
    kernels: bool = False,
) -> list[Completion]:
    """Answer requests together, one answer each, and wait for all; `generate` for more control.

    Args:
        model, on_token, weights, kernels: as in `generate`.
        requests: whole prompts.

    Raises:
        EtudeError: as `generate`, or a request that the engine refuses.
    """
    longest = model.arch.max_length
    needs = [(len(one.prompt), one.limits.max_tokens or longest) for one in requests]
    _check(model, [one.prompt for one in requests], longest)
    done = [Completion() for _ in requests]
    if not done:
        return done
    engine = Engine(model, settings=_settings(model, needs, weights, kernels))
    rows = {engine.submit(request): row for row, request in enumerate(requests)}
    left = len(rows)
    while left:
        # within a step, in the order of the rows
        for row, delta in sorted(
            ((rows[delta.id], delta) for delta in engine.step()), key=lambda pair: pair[0]
        ):
            _raise(row, delta)
            left -= done[row].add(delta)
            if on_token:
                for token in delta.token_ids:
                    on_token(row, token)
    return done


def stream(
    model: Decoder,
    prompt: Sequence[int],
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: SupportsIndex = 0,
    stop: Iterable[SupportsIndex] = (),
    engine: Engine | None = None,
) -> Iterator[int]:
    """Yield the tokens that `generate` would write after one prompt, as they are made.

    Closing the iterator ends the work.

    Args:
        model, prompt, max_tokens, temperature, top_k, top_p, seed, stop: as in `generate`.
        engine: of this model, with nothing else to do; it remembers earlier prompts, so that of a
            longer talk only the end is read. None makes one.
    """
    _check(model, [prompt], max_tokens)
    if max_tokens <= 0:
        return
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    stops = Stops(ids_of(stop, "stop ids"))
    sampling = Sampling(seed=keyed(_seeds(seed, 1)[0], prompt), **how)
    request = GenRequest(prompt, sampling, Limits(max_tokens=max_tokens), stops)
    engine = engine or Engine(model, settings=_settings(model, [(len(prompt), max_tokens)]))
    for delta in engine.stream(request):
        _raise(0, delta)
        yield from delta.token_ids


class Talker:
    """A `stream` that remembers: of a longer talk, only what is new is read.

    It belongs to one model, whose weights do not change meanwhile.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def __call__(self, model: Decoder, prompt: Sequence[int], **how: Any) -> Iterator[int]:
        """Yield new tokens; the arguments are those of `stream`."""
        if self._engine is None or self._engine.model is not model:
            settings = Settings(
                page_size=16, max_running=1, token_budget=BUDGET, speculate=0, text=False
            )
            self._engine = Engine(model, settings=settings)
        try:
            yield from stream(model, prompt, engine=self._engine, **how)
        except KeyboardInterrupt:  # perhaps in the middle of a step: nothing there can be trusted
            self._engine = None
            raise


def _settings(
    model: Decoder,
    needs: Sequence[tuple[int, int]],
    weights: str = "stored",
    kernels: bool = False,
) -> Settings:
    """As much room as the largest rows that decode together can fill."""
    longest = model.arch.max_length
    pages = sorted(-(-min(prompt + new, longest) // PAGE) for prompt, new in needs)
    return Settings(
        pages=sum(pages[-ROWS:]) + 1,  # and the one that lets the last row in
        page_size=PAGE,
        max_running=min(ROWS, len(needs)),
        token_budget=max(BUDGET, ROWS),
        reuse=False,
        speculate=0,
        weights=weights,
        kernels=kernels,
        text=False,
    )


def _seeds(seed: Any, rows: int) -> list[int]:
    """One seed per row, of any kind of integers."""
    try:
        seeds = [operator.index(seed)] * rows
    except TypeError:
        try:
            seeds = [operator.index(one) for one in seed]
        except TypeError as error:
            raise EtudeError("seed", repr(seed), "a whole number, or one per row") from error
    if len(seeds) != rows:
        raise EtudeError("seed", f"{len(seeds)} seeds", f"one, or {rows}")
    return seeds


def _raise(row: int, delta: Delta) -> None:
    if delta.failure is not None:
        raise EtudeError(f"prompt {row}", f"{delta.failure.code}: {delta.failure.message}", code=1)


def _check(model: Decoder, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    if max_tokens < 0:
        raise EtudeError("max_tokens", str(max_tokens), "0 or more")
    longest, vocab = model.arch.max_length, model.arch.vocab
    for row, prompt in enumerate(prompts):
        where = f"prompt {row}"
        if not len(prompt):
            raise EtudeError(where, "is empty", "one token at least")
        if len(prompt) >= longest:
            raise EtudeError(
                where, f"has {len(prompt)} tokens", f"fewer than the model's length, {longest}"
            )
        if min(prompt) < 0 or max(prompt) >= vocab:
            raise EtudeError(where, f"has ids {min(prompt)} to {max(prompt)}", f"0 to {vocab - 1}")
