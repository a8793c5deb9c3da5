"""Questions behind K examples in the prompt: the zero-, one- and few-shot protocol of GPT-3.

arXiv:2005.14165, sections 2.4 and 3: no weight changes; as many examples as asked for, or as fit
into the context. A free answer is written greedily or by beam search and must be exact. A choice is
made by the mean log-probability per token, and once more by log P(choice | context) -
log P(choice | bare context), which forgives a choice for being rare.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from etude.data.tasks_fewshot import Example, Materials, Task, task
from etude.engine.generate import generate
from etude.errors import EtudeError
from etude.evals.beam import beam
from etude.evals.stats import Estimate, mean, wilson
from etude.nn.decoder import Decoder
from etude.recipe.parts import FewShot
from etude.rl.sampler import seed_of
from etude.text.tokenizer import Tokenizer

IGNORED = -100
ROWS = 32  # continuations scored per forward
SHOWN = 2
SPARE = 2  # tokens more than the longest answer that a model may write

Row = dict[str, Any]
Prompt = tuple[list[int], list[Example]]  # ids, and the examples with the question last


def ask_with_examples(
    model: Decoder,
    tokenizer: Tokenizer,
    name: str,
    spec: FewShot,
    materials: Materials,
    *,
    items: int,
    seed: int,
) -> tuple[list[Row], list[Row]]:
    """Ask one task at each number of examples.

    Stages asked with one seed get the same questions; more examples are added to the fewer.

    Args:
        model: a decoder.
        tokenizer: its vocabulary.
        name: of the task.
        spec: numbers of examples and the search.
        materials: what the task is made of.
        items: questions.
        seed: of the questions.

    Returns:
        Rows of the table, whose `shots` is the mean number of examples that fitted, and a few
        answers to read.

    Raises:
        EtudeError: no such task, or a question that does not fit even without an example.
    """
    of = task(name, materials)
    most = max(spec.shots)
    rngs = [random.Random(seed_of(seed, "few-shot", name, n)) for n in range(items)]
    episodes = [of.episode(rng, most) for rng in rngs]
    rows, shown = [], []
    for shots in spec.shots:
        room = _room(tokenizer, episodes)
        asked = [_fitted(model, tokenizer, of, e, shots, room) for e in episodes]
        place = {"column": "few-shot", "task": name, "level": None, "mode": f"{shots}-shot"}
        told = {"shots": round(mean([float(len(examples) - 1) for _, examples in asked]), 2)}
        if "free" in of.forms:
            right, texts = _written(model, tokenizer, asked, spec, room)
            rows.append(place | _figures("exact", right) | told)
            for (_, examples), text, score in list(zip(asked, texts, right, strict=True))[:SHOWN]:
                shown.append(place | _card(of, examples, text, score))
        if "choice" in of.forms:
            for metric, right in _chosen(model, tokenizer, of, asked):
                rows.append(place | _figures(metric, right) | told)
    return rows, shown


def prompt_text(of: Task, examples: Sequence[Example]) -> str:
    """Return the instruction, the solved examples, and the last one without its answer."""
    solved = "".join(f"{one.prompt}{one.answer}{of.between}" for one in examples[:-1])
    return f"{of.instruction}{solved}{examples[-1].prompt}"


def _room(tokenizer: Tokenizer, episodes: Sequence[Sequence[Example]]) -> int:
    """Tokens of the longest answer, and a few to spare."""
    answers = [answer for e in episodes for answer in (e[-1].answer, *e[-1].choices)]
    return max(len(tokenizer.encode(answer)) for answer in answers) + SPARE


def _fitted(
    model: Decoder,
    tokenizer: Tokenizer,
    of: Task,
    episode: Sequence[Example],
    shots: int,
    room: int,
) -> Prompt:
    """Return a prompt with as many of the examples as fit: never one that is cut in two."""
    most, size = model.arch.max_length - room, 0
    for count in range(shots, -1, -1):
        examples = [*episode[:count], episode[-1]]
        ids = tokenizer.encode(prompt_text(of, examples))
        size = len(ids)
        if size <= most:
            return ids, examples
    raise EtudeError("few-shot", f"a question of {size} tokens", f"at most {most}")


def _written(
    model: Decoder, tokenizer: Tokenizer, asked: Sequence[Prompt], spec: FewShot, room: int
) -> tuple[list[bool], list[str]]:
    """Let the model write up to the end of the line; an answer must be right to the letter."""
    prompts = [ids for ids, _ in asked]
    stop = line_ends(tokenizer)
    if spec.beams > 1:
        made = [
            beam(
                model,
                ids,
                width=spec.beams,
                max_tokens=room,
                stop=stop,
                length_penalty=spec.length_penalty,
            )
            for ids in prompts
        ]
    else:
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        found = generate(model, [prompts[n] for n in order], max_tokens=room, stop=stop)
        back = dict(zip(order, found, strict=True))
        made = [back[n].tokens for n in range(len(prompts))]
    texts = [tokenizer.decode(ids).partition("\n")[0] for ids in made]
    right = [
        text.strip() == examples[-1].answer.strip()
        for text, (_, examples) in zip(texts, asked, strict=True)
    ]
    return right, texts


def line_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that end a line, and the one that ends a document."""
    ids = range(tokenizer.vocab_size)
    ends = {id for id in ids if b"\n" in tokenizer.decode_bytes([id])}
    return frozenset(ends | {tokenizer.id(tokenizer.end)})


def _chosen(
    model: Decoder, tokenizer: Tokenizer, of: Task, asked: Sequence[Prompt]
) -> Iterator[tuple[str, list[bool]]]:
    """Choose by both rules: `per token`, and `over base` against the bare context."""
    bare = tokenizer.encode(of.bare)
    pairs, alone = [], []
    for ids, examples in asked:
        for choice in examples[-1].choices:
            tokens = tokenizer.encode(choice)
            pairs.append((ids, tokens))
            alone.append((bare, tokens))
    whole = log_probabilities(model, pairs)
    base = log_probabilities(model, alone)
    per_token = [logp / len(tokens) for logp, (_, tokens) in zip(whole, pairs, strict=True)]
    over_base = [logp - prior for logp, prior in zip(whole, base, strict=True)]
    for metric, scores in (("per token", per_token), ("over base", over_base)):
        right, at = [], 0
        for _, examples in asked:
            choices = examples[-1].choices
            part = scores[at : at + len(choices)]
            right.append(choices[part.index(max(part))] == examples[-1].answer)
            at += len(choices)
        yield metric, right


@torch.inference_mode()
def log_probabilities(
    model: Decoder, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Return log P(continuation | context) in nats of each pair of token lists."""
    device = model.embed.weight.device
    order = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0]) + len(pairs[n][1]))
    found = [0.0] * len(pairs)
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        longest = max(len(pairs[n][0]) + len(pairs[n][1]) for n in part)
        ids = torch.zeros(len(part), longest, dtype=torch.long)  # padding behind is never read
        labels = torch.full_like(ids, IGNORED)
        for row, n in enumerate(part):
            context, after = pairs[n]
            whole = torch.tensor([*context, *after])
            ids[row, : len(whole)] = whole
            labels[row, len(context) - 1 : len(whole) - 1] = whole[len(context) :]
        scores = model(ids.to(device), labels=labels.to(device), mtp=False)
        for n, logp in zip(part, scores.logp.double().sum(dim=1).tolist(), strict=True):
            found[n] = logp
    return found


def _figures(metric: str, right: Sequence[bool]) -> Row:
    estimate: Estimate = wilson(sum(right), len(right))
    value, low, high = estimate.value, estimate.low, estimate.high
    return {"metric": metric, "value": value, "low": low, "high": high, "n": estimate.n}


def _card(of: Task, examples: Sequence[Example], text: str, right: bool) -> Row:
    return {
        "prompt": prompt_text(of, examples),
        "reply": text,
        "answer": examples[-1].answer.strip(),
        "score": float(right),
    }
