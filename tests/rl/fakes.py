"""A tiny vocabulary, a tiny model, and samplers that say what a test wants."""

import re
from collections.abc import Callable, Sequence
from functools import cache

from etude.models.checkpoint import create
from etude.nn.decoder import Decoder
from etude.rl.dialogue import Dialogue
from etude.rl.player import Player
from etude.rl.sampler import Completion, Prompt, Sampling
from etude.rl.toolbox import Toolbox
from etude.text.chat import new_tokenizer
from etude.text.tokenizer import Tokenizer

VOCAB = 320


@cache
def tokenizer() -> Tokenizer:
    lines = ["find the word of page 4", "a b c 1+2=3 calculator expression lookup page"] * 20
    return new_tokenizer(lines, VOCAB)


def model(seed: int = 0, **config: object) -> Decoder:
    small = {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48}
    small |= {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_attention_heads": 4}
    small |= {"num_experts_per_tok": 2, "num_nextn_predict_layers": 0, "vocab_size": VOCAB}
    made = create("glm45", "mini", seed=seed, **small | config)
    for weight in made.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)  # far from uniform, so that a mistake shows in the probabilities
    return made


class Scripted:
    """A sampler that answers by rule: the text of a prompt and its seed in, a reply out.

    With `letters` it spells plain text letter by letter.
    """

    def __init__(self, rule: Callable[[str, int], str], *, letters: bool = False):
        self.rule, self.letters, self.version = rule, letters, 0
        self.calls: list[tuple[Sequence[Prompt], Sampling]] = []

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        self.calls.append((prompts, params))
        return [self._answer(prompt, params) for prompt in prompts]

    async def update(self, weights: object, version: int) -> None:
        self.version = version

    def spell(self, text: str) -> list[int]:
        words = "|".join(map(re.escape, tokenizer().special))
        parts = re.split(f"({words})", text) if self.letters else [text]
        units = [unit for p in parts for unit in ([p] if p in tokenizer().special else p)]
        units = units if self.letters else parts
        return [id for unit in units for id in tokenizer().encode(unit, special=True)]

    def _answer(self, prompt: Prompt, params: Sampling) -> Completion:
        text = self.rule(tokenizer().decode(prompt.ids), prompt.seed)
        tokens = self.spell(text)
        most = params.max_tokens if prompt.max_tokens is None else prompt.max_tokens
        cut = len(tokens) > most
        tokens = tokens[:most]
        return Completion(tokens, [-0.5] * len(tokens), "length" if cut else "stop", self.version)


def player(rule: Callable[[str, int], str], toolbox: Toolbox | None = None, **how: int) -> Player:
    limits = {"max_tokens": 80, "length": 4096} | how
    return Player(Scripted(rule), Dialogue(tokenizer()), toolbox or Toolbox(), **limits)
