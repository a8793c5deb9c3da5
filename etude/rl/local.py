"""The sampler in this process: our engine on the very tensors that train, or on a copy of them."""

import asyncio
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from etude.engine.generate import answer, keyed
from etude.engine.request import Answer, GenRequest, Limits, Repetition, Stops, Thinking, Want
from etude.engine.request import Sampling as Drawing
from etude.nn import build
from etude.nn.decoder import Decoder
from etude.rl.sampler import Completion, Prompt, Sampling
from etude.rl.stream import Stream


class Stopped(Exception):
    """Sampling was ended from another thread."""


class LocalSampler:
    """`rl.sampler.Sampler` over the engine.

    Args:
        model: the model that trains. Its tensors are used as they are, until `update` brings whole
            ones (those of a sharded model), which go into a copy of the same description.
        version: number of the weights at the start.
        dtype: of the copy.
        copy: make the copy at once, so that the model may train meanwhile.
        overlap: calls share one engine and go on beside each other; else each call runs alone, and
            a repeated one gives the same bits.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        version: int = 0,
        dtype: torch.dtype = torch.float32,
        copy: bool = False,
        overlap: bool = False,
    ):
        self.model, self.version, self.dtype, self.overlap = model, version, dtype, overlap
        self._lock, self._posted, self._stopped = threading.Lock(), None, False
        self._posted: tuple[Mapping[str, Tensor], int] | None
        self._copied = False
        if copy:
            self._load(model.state_dict())
        self._stream = Stream(self.model, self._newest)

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer each prompt; rows of like length decode together, which changes no row's draws."""
        if self.overlap:
            return await asyncio.gather(*(self._beside(prompt, params) for prompt in prompts))
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].ids))
        self._newest()
        made = answer(self.model, [_request(prompts[row], params) for row in order])
        done = [
            _completion(prompts[row], one, self.version)
            for row, one in sorted(zip(order, made, strict=True), key=lambda pair: pair[0])
        ]
        return done

    async def update(self, weights: Mapping[str, Tensor] | None, version: int) -> None:
        """Count a new version; whole `weights` go into this sampler's own copy."""
        if weights is not None:
            self._load(weights)
        self.version = version

    def post(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Leave new weights from another thread, to be taken before the next step.

        Args:
            weights: that nobody changes any more.
            version: their number.
        """
        with self._lock:
            self._posted = weights, version

    def stop(self) -> None:
        """End sampling from another thread: the next step raises `Stopped`."""
        self._stopped = True

    def _newest(self) -> int:
        """Take posted weights in; return the number of those that are there."""
        if self._stopped:
            raise Stopped
        with self._lock:
            posted, self._posted = self._posted, None
        if posted is not None:
            self._load(posted[0])
            self.version = posted[1]
        return self.version

    async def _beside(self, prompt: Prompt, params: Sampling) -> Completion:
        asked = await self._stream.ask(_request(prompt, params, owner=self._stream.owner()))
        made, versions = asked.answer, asked.versions
        last = versions[-1] if versions else self.version
        return _completion(prompt, made, last, versions)

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        if not self._copied:
            device = self.model.embed.weight.device
            self.model = build.decoder(self.model.arch).to(device, self.dtype)
            self._stream = Stream(self.model, self._newest)
            self._copied = True
        self.model.load_state_dict(weights, strict=True)


def _request(prompt: Prompt, params: Sampling, *, owner: str = "") -> GenRequest:
    repetition = Repetition(*params.repetition) if params.repetition else None
    most = params.max_tokens if prompt.max_tokens is None else prompt.max_tokens
    return GenRequest(
        prompt.ids,
        Drawing(params.temperature, seed=keyed(prompt.seed, prompt.ids)),
        Limits(max_tokens=most, repetition=repetition),
        Stops(params.stop),
        prompt.thinking,
        want=Want(logp="tempered", routes=params.routes),
        owner=owner,
    )


def _completion(
    prompt: Prompt, made: Answer, version: int, versions: list[int] | None = None
) -> Completion:
    finish, closed = made.finish or "length", forced(prompt.thinking, made.tokens)
    return Completion(made.tokens, made.logp, finish, version, versions, made.routes, closed)


def forced(rule: Thinking | None, tokens: Sequence[int]) -> tuple[int, ...]:
    """Return the places of closing ids that a budget of reasoning forced into an answer.

    The engine counts likewise, and does not tell: behind as many tokens of reasoning as the budget
    has, it gives no choice.

    Args:
        rule: with one closing id.
        tokens: of the answer.
    """
    if rule is None or not isinstance(rule.budget, int):
        return ()
    inside, spent, found = rule.inside, 0, []
    for at, token in enumerate(tokens):
        if not inside:
            inside = token == rule.open
        elif spent >= rule.budget:
            inside = False
            found.append(at)
        elif token == rule.close[-1]:
            inside = False
        else:
            spent += 1
    return tuple(found)
