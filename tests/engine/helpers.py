"""Small models of every family, and what a request gives when nothing but it is computed."""

import random
from dataclasses import replace
from functools import cache

import torch

from etude.arch import Attention, Banded
from etude.engine.engine import Engine
from etude.engine.request import GenRequest, Limits, Sampling, Want
from etude.engine.settings import Settings
from etude.models.table import family
from etude.nn import build
from etude.nn.init import initialise
from etude.ops.sample import sample

VOCAB = 12  # so few ids that guesses come true


@cache
def model(name, dtype=torch.float64, widths=()):
    """One layer of each kind that the family has, in its tiny size, with clear choices.

    With `widths`, each layer of attention comes once per width, with a band of it; 0 is none.
    """
    module = family(name)
    whole = module.arch(module.SIZES["tiny"])
    kinds = {tuple(type(part.op) for part in layer): layer for layer in whole.layers}
    layers = [one for layer in kinds.values() for one in _banded(layer, widths)]
    made = build.decoder(replace(whole, layers=tuple(layers), vocab=VOCAB, max_length=96))
    initialise(made, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in made.parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1:
                tensor += 0.2 * noise
            elif tensor.shape[0] == VOCAB:
                tensor.copy_(0.6 * noise)
            else:
                tensor *= 2
    return made.to(dtype).eval()


def _banded(layer, widths):
    if not widths or not any(isinstance(part.op, Attention) for part in layer):
        return [layer]
    spans = [Banded(width) if width else None for width in widths]
    return [
        tuple(
            replace(part, op=replace(part.op, span=span))
            if isinstance(part.op, Attention)
            else part
            for part in layer
        )
        for span in spans
    ]


def prompts(seed, count, longest=14):
    """Prompts that share beginnings, as those of one application do."""
    rng = random.Random(seed)
    stem = [rng.randrange(VOCAB) for _ in range(longest)]
    return [
        stem[: rng.randrange(longest)] + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 6))]
        for _ in range(count)
    ]


@torch.no_grad()
def slow(model, prompt, tokens, temperature=0.0, seed=0):
    """What a request gives by whole passes of the model, without cache or engine."""
    row = list(prompt)
    for _ in range(tokens):
        logits = model(torch.tensor([row]))[:, -1]
        at = torch.tensor([seed]), torch.tensor([len(row)])
        row.append(int(sample(logits, *at, temperature=temperature)[0]))
    return row[len(prompt) :]


def request(prompt, tokens=8, temperature=0.0, seed=0, want=None, **how):
    """A request in few words."""
    sampling = Sampling(temperature=temperature, seed=seed)
    return GenRequest(prompt, sampling, Limits(max_tokens=tokens), want=want or Want(), **how)


def engine(model, tokenizer=None, **how):
    """An engine that checks its counts after every step."""
    how = {"pages": 64, "page_size": 4, "speculate": 0, "debug": True} | how
    return Engine(model, tokenizer, Settings(**how))


def answers(model, requests, **how):
    """Ids of the answers, from an engine that must end with nothing held."""
    made = engine(model, **how)
    done = made.run(requests)
    empty(made)
    return [one.tokens for one in done]


def empty(engine):
    """Fail unless every page, slot and row is back."""
    engine.check()
    now = engine.stats()
    assert (now.waiting, now.reading, now.writing, now.pages) == (0, 0, 0, 0)
    assert not engine.busy
