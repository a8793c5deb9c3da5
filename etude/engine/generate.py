"""Batched cached decoding: prompts in, new tokens out, through the same modules as training.

Prompts of different lengths are padded on the right and read in chunks; then each step feeds one
token per row. What a row samples depends on its seed, its prompt and its position, never on its
neighbours.
"""

import hashlib
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from etude.errors import EtudeError
from etude.nn.cache import Cache
from etude.nn.decoder import Decoder
from etude.ops.sample import sample
from etude.typing import Bool, Float, Int, Tensor

# logits of a prompt chunk: 256 MB, unless 16 tokens of each row already make more
LOGITS = 2**26
ROWS = 256  # rows decoded together; on two CPU cores more rows give no more tokens a second


@dataclass(slots=True)
class Completion:
    """What was written after one prompt.

    Args:
        tokens: new ids, with the stop token that ended them if one did.
        logp: log-probability of each, with the temperature applied.
        finish: "stop", or "length" when the tokens asked for or the model's length ran out.
    """

    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finish: str = "length"


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop: Collection[int] = (),
    on_token: Callable[[int, int], None] | None = None,
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

    Returns:
        One completion per prompt, in their order.

    Raises:
        EtudeError: an empty prompt, an id outside the vocabulary, or no room after a prompt.
    """
    _check(model, prompts)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise EtudeError("seed", f"{len(seeds)} seeds", f"one, or {len(prompts)}")
    done = [Completion() for _ in prompts]
    for start in range(0, len(prompts) if max_tokens > 0 else 0, ROWS):
        rows = range(start, min(start + ROWS, len(prompts)))
        keys = [_key(seeds[row], prompts[row]) for row in rows]
        batch = _Batch(model, [prompts[row] for row in rows], keys, max_tokens)
        while batch.rows:
            made = batch.step(temperature=temperature, top_k=top_k, top_p=top_p)
            ended = []
            for place, token, logp in made:
                row = done[start + place]
                row.tokens.append(token)
                row.logp.append(logp)
                if token in stop:
                    row.finish = "stop"
                if token in stop or len(row.tokens) == batch.room[place]:
                    ended.append(place)
                if on_token:
                    on_token(start + place, token)
            batch.drop(ended)
    return done


def stream(
    model: Decoder,
    prompt: Sequence[int],
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """Yield the tokens that `generate` would write after one prompt, as they are made.

    The arguments are those of `generate`. Closing the iterator ends the work.
    """
    _check(model, [prompt])
    batch = _Batch(model, [prompt], [_key(seed, prompt)], max_tokens)
    for _ in range(batch.room[0]):
        [(_, token, _)] = batch.step(temperature=temperature, top_k=top_k, top_p=top_p)
        yield token
        if token in stop:
            return


class _Batch:
    """Rows that decode together, their cache, and the logits their next tokens are drawn from."""

    def __init__(
        self, model: Decoder, prompts: Sequence[Sequence[int]], keys: list[int], max_tokens: int
    ) -> None:
        self.model, self.device = model, model.embed.weight.device
        lengths = [len(prompt) for prompt in prompts]
        self.rows = list(range(len(prompts)))
        self.room = [min(max_tokens, model.arch.max_length - length) for length in lengths]
        self.ended = [False] * len(prompts)
        self.keys = torch.tensor(keys, device=self.device)
        self.positions = torch.tensor(lengths, device=self.device)
        room = max(length + room for length, room in zip(lengths, self.room, strict=True))
        # rollouts of one group share their prompt: it is read once, and its cache row repeated
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        self.distinct = distinct
        place = {prompt: n for n, prompt in enumerate(distinct)}
        self.place = torch.tensor([place[tuple(p)] for p in prompts], device=self.device)
        self.cache = Cache(model, rows=len(distinct), capacity=room)
        self.tokens = torch.empty(0, dtype=torch.long)  # of the last step; none yet

    @torch.inference_mode()
    def step(self, **how: Any) -> list[tuple[int, int, float]]:
        """Choose one more token for every row: (row, token, log-probability) of those not ended."""
        if not len(self.tokens):
            logits = self._prefill()
        else:
            logits = self.model(self.tokens[:, None], cache=self.cache)[:, -1]  # [B, V]
        self.tokens, logp = sample(logits, self.keys, self.positions, **how)
        self.positions = self.positions + 1
        made = zip(self.rows, self.tokens.tolist(), logp.tolist(), strict=True)
        return [one for one in made if not self.ended[one[0]]]

    @torch.inference_mode()
    def drop(self, places: Sequence[int]) -> None:
        """Let rows go that have ended; the cache is packed anew once a quarter of it is idle."""
        for place in places:
            self.ended[place] = True
        alive = [n for n, place in enumerate(self.rows) if not self.ended[place]]
        # an idle row still grows, and must not outgrow the model
        full = self.cache.longest == self.model.arch.max_length
        if len(alive) > 0.75 * len(self.rows) and not full:
            return
        self.rows = [self.rows[n] for n in alive]
        if alive:
            keep = torch.tensor(alive, device=self.device)
            self.cache.keep(keep)
            self.cache.longest = int(self.cache.lengths.max())
            self.tokens, self.keys = self.tokens[keep], self.keys[keep]
            self.positions = self.positions[keep]

    def _prefill(self) -> Float[Tensor, "B V"]:
        ids, mask = _padded(self.distinct, self.device)
        lengths = mask.sum(1)
        shortest, longest = min(map(len, self.distinct)), ids.shape[1]
        size = max(16, LOGITS // (len(ids) * self.model.arch.vocab))
        last = self.model.embed.weight.new_empty(0)
        for start in range(0, longest, size):
            part = slice(start, min(start + size, longest))
            # a mask only where there is padding: the cache is faster while rows stay of one length
            padded = mask[:, part] if shortest < part.stop else None
            logits = self.model(ids[:, part], mask=padded, cache=self.cache)  # [B, T, V]
            at = (lengths - 1 - start).clamp(0, logits.shape[1] - 1)
            here = logits[torch.arange(len(ids), device=self.device), at]  # [B, V]
            last = here if start == 0 else torch.where((lengths > start)[:, None], here, last)
        if len(self.place) == len(ids):
            return last
        self.cache.keep(self.place)
        return last[self.place]


def _padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    longest = max(map(len, prompts))
    rows = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = torch.arange(longest, device=device) < lengths[:, None]
    return torch.tensor(rows, device=device), mask


def _check(model: Decoder, prompts: Sequence[Sequence[int]]) -> None:
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


def _key(seed: int, prompt: Sequence[int]) -> int:
    # the prompt is part of the key: one seed for a whole test must not give all items one draw
    text = array("q", [seed & (2**63 - 1), *prompt]).tobytes()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
