"""Beam search: the likeliest whole answer among a few that grow side by side."""

from collections.abc import Collection, Sequence

import torch

from etude.nn.cache import Cache
from etude.nn.decoder import Decoder


@torch.inference_mode()
def beam(
    model: Decoder,
    prompt: Sequence[int],
    *,
    width: int = 4,
    max_tokens: int = 32,
    stop: Collection[int] = (),
    length_penalty: float = 0.6,
) -> list[int]:
    """Return the best continuation, without the token that ended it.

    Args:
        model: a decoder.
        prompt: token ids.
        width: unfinished answers kept (GPT-3: 4).
        max_tokens: most new tokens.
        stop: ids that end an answer.
        length_penalty: alpha; an answer of n tokens scores log P / ((5 + n) / 6) ** alpha. GPT-3
            gives 0.6; the form is that of Wu et al., arXiv:1609.08144, equation 14, which GPT-3
            does not spell out.
    """
    room = min(max_tokens, model.arch.max_length - len(prompt))
    device = model.embed.weight.device
    cache = Cache(model, rows=1, capacity=len(prompt) + room)
    logits = model(torch.tensor([list(prompt)], device=device), cache=cache)[:, -1]
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    for length in range(1, room + 1):
        scale = ((5 + length) / 6) ** length_penalty
        before = torch.tensor([logp for logp, _ in live], dtype=torch.float64, device=device)
        sums = before[:, None] + logits.double().log_softmax(-1)  # [W, V]
        best, places = sums.flatten().topk(min(2 * width, sums.numel()))
        grown: list[tuple[float, list[int]]] = []
        parents: list[int] = []
        for logp, place in zip(best.tolist(), places.tolist(), strict=True):
            parent, token = divmod(place, sums.shape[1])
            if token in stop:
                done.append((logp / scale, live[parent][1]))
            elif len(grown) < width:
                grown.append((logp, [*live[parent][1], token]))
                parents.append(parent)
        live = grown
        ended = length == room or len(done) >= width
        if ended:
            break
        cache.keep(torch.tensor(parents, device=device))
        last = torch.tensor([[tokens[-1]] for _, tokens in live], device=device)
        logits = model(last, cache=cache)[:, -1]
    scale = ((5 + room) / 6) ** length_penalty
    # what is unfinished at the end counts only where nothing has finished
    found = done or [(logp / scale, tokens) for logp, tokens in live]
    return max(found, key=lambda one: one[0])[1]
