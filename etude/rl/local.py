"""The sampler in this process: our engine on the very tensors that train; nothing is sent."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from etude.engine.generate import generate
from etude.nn import build
from etude.nn.decoder import Decoder
from etude.rl.sampler import Completion, Prompt, Sampling


class LocalSampler:
    """`rl.sampler.Sampler` over `engine.generate`.

    Args:
        model: the model that trains. Its tensors are used as they are, until `update` brings whole
            ones (those of a sharded model), which go into a copy of the same description.
        version: number of the weights at the start.
        dtype: of the copy.
    """

    def __init__(self, model: Decoder, *, version: int = 0, dtype: torch.dtype = torch.float32):
        self.model, self.version, self.dtype = model, version, dtype
        self._copied = False

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer each prompt; rows of like length decode together, which changes no row's draws."""
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].ids))
        training = self.model.training
        self.model.eval()
        try:
            made = generate(
                self.model,
                [prompts[row].ids for row in order],
                seed=[prompts[row].seed for row in order],
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                stop=params.stop,
            )
        finally:
            self.model.train(training)
        done = [
            Completion(one.tokens, one.logp, one.finish, self.version)
            for _, one in sorted(zip(order, made, strict=True), key=lambda pair: pair[0])
        ]
        return done

    @torch.no_grad()
    async def update(self, weights: Mapping[str, Tensor] | None, version: int) -> None:
        """Count a new version; whole `weights` go into this sampler's own copy."""
        if weights is not None:
            if not self._copied:
                device = self.model.embed.weight.device
                self.model = build.decoder(self.model.arch).to(device, self.dtype)
                self._copied = True
            self.model.load_state_dict(weights, strict=True)
        self.version = version
