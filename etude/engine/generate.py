"""Prompts in, new tokens out: the engine, for callers who have all prompts and wait for all.

What a row samples depends on its seed, its prompt and its position, never on its neighbours.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, SupportsIndex

from etude.engine.engine import Engine
from etude.engine.request import Answer, Delta, GenRequest, Limits, Sampling, Stops, Want, misfit
from etude.engine.settings import Settings
from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.ops.sample import ids_of, mixed

ROWS = 256  # rows decoded together; on two CPU cores more rows give no more tokens a second
BUDGET = 2048  # tokens of a pass: as fast as more, in a quarter of the memory
PAGE = 64


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
) -> list[Answer]:
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
        One answer per prompt, in their order; its log-probabilities have the temperature applied.

    Raises:
        EtudeError: an empty prompt, an id outside the vocabulary, no room after a prompt,
            negative `max_tokens`, `stop` that are no ids, or logits that are not finite.
    """
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "stop": stop}
    asked = _asked(model, prompts, max_tokens, Want(logp="tempered"), **how)
    if not max_tokens:
        return [Answer(finish="length") for _ in prompts]
    return answer(model, asked, on_token=on_token, weights=weights, kernels=kernels)


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
) -> list[Answer]:
    """Answer requests together, one answer each, and wait for all; `generate` for more control.

    Args:
        model, on_token, weights, kernels: as in `generate`.
        requests: whole prompts.

    Raises:
        EtudeError: as `generate`, or a request that the engine refuses.
    """
    _check(model, [one.prompt for one in requests])
    if not requests:
        return []

    def tell(row: int, delta: Delta) -> None:
        for token in _new(delta, row):
            if on_token:
                on_token(row, token)

    settings = _settings(model, requests, weights=weights, kernels=kernels)
    return Engine(model, settings=settings).run(requests, tell)


def stream(
    model: Decoder,
    prompt: Sequence[int],
    *,
    max_tokens: int = 64,
    engine: Engine | None = None,
    **how: Any,
) -> Iterator[int]:
    """Yield the tokens that `generate` would write after one prompt, as they are made.

    Closing the iterator ends the work.

    Args:
        model, prompt, max_tokens: as in `generate`.
        engine: of this model, with nothing else to do; it remembers earlier prompts, so that of a
            longer talk only the end is read. None makes one.
        **how: `temperature`, `top_k`, `top_p`, `seed`, `stop`, as in `generate`.
    """
    [request] = _asked(model, [prompt], max_tokens, Want(), **how)
    if max_tokens:
        engine = engine or Engine(model, settings=_settings(model, [request]))
        for delta in engine.stream(request):
            yield from _new(delta, 0)


class Talker:
    """A `stream` that remembers: of a longer talk, only what is new is read.

    It belongs to one model, whose weights do not change meanwhile.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None

    def __call__(self, model: Decoder, prompt: Sequence[int], **how: Any) -> Iterator[int]:
        """Yield new tokens; the arguments are those of `stream`."""
        if self._engine is None or self._engine.model is not model:
            bounds = {"page_size": 16, "max_running": 1, "token_budget": BUDGET}
            self._engine = Engine(model, settings=Settings(**bounds, speculate=0, text=False))
        try:
            yield from stream(model, prompt, engine=self._engine, **how)
        except KeyboardInterrupt:  # perhaps in the middle of a step: nothing there can be trusted
            self._engine = None
            raise


def _asked(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    want: Want,
    *,
    seed: Any = 0,
    stop: Iterable[SupportsIndex] = (),
    **drawing: Any,
) -> list[GenRequest]:
    """A request per prompt; none of them may be wrong, for no other would be answered."""
    if max_tokens < 0:
        raise EtudeError("max_tokens", str(max_tokens), "0 or more")
    _check(model, prompts)
    drawing.setdefault("temperature", 0.0)
    limits, stops = Limits(max_tokens or None), Stops(ids_of(stop, "stop ids"))
    return [
        GenRequest(prompt, Sampling(seed=keyed(one, prompt), **drawing), limits, stops, want=want)
        for prompt, one in zip(prompts, _seeds(seed, len(prompts)), strict=True)
    ]


def _check(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    for row, prompt in enumerate(prompts):
        if wrong := misfit(prompt, model.arch.vocab, model.arch.max_length):
            raise EtudeError(f"prompt {row}", *wrong[1:])


def _seeds(seed: Any, rows: int) -> list[int]:
    """One seed per row, of any kind of integers."""
    with suppress(TypeError):
        return [operator.index(seed)] * rows
    try:
        seeds = [operator.index(one) for one in seed]
    except TypeError as error:
        raise EtudeError("seed", repr(seed), "a whole number, or one per row") from error
    if len(seeds) != rows:
        raise EtudeError("seed", f"{len(seeds)} seeds", f"one, or {rows}")
    return seeds


def _settings(model: Decoder, requests: Sequence[GenRequest], **how: Any) -> Settings:
    """As much room as the largest rows that decode together can fill."""
    longest = model.arch.max_length
    needs = [len(one.prompt) + (one.limits.max_tokens or longest) for one in requests]
    pages = sorted(-(-min(tokens, longest) // PAGE) for tokens in needs)
    return Settings(
        pages=sum(pages[-ROWS:]) + 1,  # and the one that lets the last row in
        page_size=PAGE,
        max_running=min(ROWS, len(requests)),
        token_budget=max(BUDGET, ROWS),
        reuse=False,
        speculate=0,
        text=False,
        **how,
    )


def _new(delta: Delta, row: int) -> list[int]:
    """What a delta adds to a row; an `EtudeError` if that has failed."""
    if delta.failure is not None:
        raise EtudeError(f"prompt {row}", f"{delta.failure.code}: {delta.failure.message}", code=1)
    return delta.token_ids
