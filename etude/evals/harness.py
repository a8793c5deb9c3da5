"""One stage measured: bits per byte of held-out documents, and held-out problems of each family."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, Protocol

from etude.data import contamination
from etude.data.baselines import NGram, compressed
from etude.data.tasks_fewshot import Materials
from etude.evals import speed
from etude.evals.bits import bits_per_byte
from etude.evals.fewshot import ask_with_examples
from etude.evals.lengths import by_place, stretches
from etude.evals.peaks import largest_score
from etude.evals.probes import Row, ask, row
from etude.files import digest
from etude.nn.decoder import Decoder
from etude.recipe.parts import ByLength
from etude.recipe.stages import Eval
from etude.rl.dialogue import Dialogue
from etude.rl.local import LocalSampler
from etude.rl.player import Player
from etude.rl.toolbox import Toolbox
from etude.text.tokenizer import Tokenizer

Baselines = Callable[[str, Sequence[str]], Mapping[str, float]]


class Text(Protocol):
    """A held-out document."""

    text: str


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    spec: Eval,
    stage: str,
    documents: Mapping[str, Iterable[Text]],
    *,
    seed: int = 0,
    format: str | None = "glm45",
    baselines: Baselines | None = None,
    seen: "Seen | None" = None,
    materials: Materials | None = None,
    toolbox: Toolbox | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], list[Row]]:
    """Measure one stage.

    Args:
        model: the stage's weights.
        tokenizer: its vocabulary.
        spec: what is asked.
        stage: name of the stage.
        documents: held-out documents by domain; each is cut to `spec.length` tokens.
        seed: of problems and sampling; equal for stages that are compared.
        format: name of the chat format.
        baselines: from a domain and the texts as cut to what others need for them, in bits per
            byte, by name; see `against`.
        seen: tells documents that share text with training, which are then measured without, too.
        materials: what few-shot tasks are made of.
        toolbox: tools for the probes; None opens the shipped ones.
        say: called before each part.

    Returns:
        The figures as kept in `evals/<stage>.json`, and answers to read.
    """
    rows: list[Row] = []
    for domain in spec.domains:
        say(f"{stage}: bits per byte of {domain}")
        rows += _language(model, tokenizer, spec, domain, documents[domain], baselines, seen)
    shown: list[Row] = []
    for found, answers in _by_examples(model, tokenizer, spec, stage, materials, seed, say):
        rows += found
        shown += answers
    if spec.by_length:
        rows += _by_length(model, tokenizer, spec.by_length, stage, documents, say)
    if spec.speed:
        say(f"{stage}: tokens per second")
        rows += speed.rows(model, spec.speed)
    with nullcontext(toolbox) if toolbox else Toolbox() as tools:
        talk = Dialogue(tokenizer, format)
        limits = {"max_tokens": spec.max_tokens, "length": model.arch.max_length}
        player = Player(LocalSampler(model), talk, tools, **limits)
        for name, probe in spec.probes.items():
            say(f"{stage}: {name}")
            for found, answers in ask(player, name, probe, spec, seed):
                rows += found
                shown += answers
    order = spec.of.index(stage) if stage in spec.of else len(spec.of)
    return {"stage": stage, "order": order, "rows": rows}, shown


def _by_examples(
    model: Decoder,
    tokenizer: Tokenizer,
    spec: Eval,
    stage: str,
    materials: Materials | None,
    seed: int,
    say: Callable[[str], None],
) -> Iterator[tuple[list[Row], list[Row]]]:
    made = materials or Materials(lambda: (), list)
    for name, few in spec.fewshot.items():
        say(f"{stage}: {name}, {' and '.join(map(str, few.shots))} examples")
        asked = {"items": spec.items, "seed": seed}
        yield ask_with_examples(model, tokenizer, name, few, made, **asked)


def _language(
    model: Decoder,
    tokenizer: Tokenizer,
    spec: Eval,
    domain: str,
    documents: Iterable[Text],
    baselines: Baselines | None,
    seen: "Seen | None",
) -> Iterator[Row]:
    read = list(islice(documents, spec.documents))
    yield _bits(model, tokenizer, spec, domain, read, baselines)
    if spec.scores:
        texts = [tokenizer.encode(document.text) for document in read]
        place = {"column": "language", "task": domain, "level": None, "mode": "-"}
        yield row(place, "max score", largest_score(model, texts, window=spec.length))
    if seen is not None:
        clean = [d for d, dirty in zip(read, seen(domain, read), strict=True) if not dirty]
        yield _bits(model, tokenizer, spec, domain, clean, None) | {"metric": "clean bpb"}


def _bits(
    model: Decoder,
    tokenizer: Tokenizer,
    spec: Eval,
    domain: str,
    documents: Iterable[Text],
    baselines: Baselines | None,
) -> Row:
    measured, texts = [], []
    for document in documents:
        ids = tokenizer.encode(document.text)[: spec.length]
        if len(ids) > 1:
            # the first token is given, so its bytes do not count
            measured.append((ids, len(tokenizer.decode_bytes(ids[1:]))))
            texts.append(tokenizer.decode_bytes(ids).decode(errors="ignore"))
    place = {"column": "language", "task": domain, "level": None, "mode": "-"}
    found = row(place, "bpb", bits_per_byte(model, measured, window=spec.length))
    found["bytes"] = sum(size for _, size in measured)
    found["tokens"] = sum(len(ids) - 1 for ids, _ in measured)
    return found | ({"baseline": dict(baselines(domain, texts))} if baselines else {})


def _by_length(
    model: Decoder,
    tokenizer: Tokenizer,
    spec: ByLength,
    stage: str,
    documents: Mapping[str, Iterable[Text]],
    say: Callable[[str], None],
) -> list[Row]:
    rows = []
    for domain in spec.domains:
        say(f"{stage}: bits per byte of {domain} by place")
        texts = [document.text for document in documents[domain]]
        cut = stretches(tokenizer, texts, length=spec.edges[-1], most=spec.stretches)
        for edge, found in by_place(model, tokenizer, cut, spec.edges).items():
            place = {"column": "length", "task": domain, "level": edge, "mode": "-"}
            rows.append(row(place, "bpb there", found))
    return rows


class Seen:
    """Which documents share a run of words with the training text of their set.

    Args:
        train: texts by domain, read when the domain is first measured.
    """

    def __init__(self, train: Mapping[str, Iterable[str]]) -> None:
        self.train, self.known = train, dict[str, list[bool]]()

    def __call__(self, domain: str, documents: Sequence[Text]) -> list[bool]:
        """Return true for each document that does."""
        texts = [document.text for document in documents]
        key = digest(domain, *texts)
        if key not in self.known:
            self.known[key] = contamination.seen_before(texts, self.train[domain])
        return self.known[key]


def against(train: Mapping[str, Iterable[str]]) -> Baselines:
    """Return the baselines of a corpus: an n-gram model and gzip that have read its training text.

    Args:
        train: texts by domain, read when the domain is first measured; a second measurement of the
            same texts costs nothing.
    """
    known: dict[str, dict[str, float]] = {}

    def measure(domain: str, texts: Sequence[str]) -> Mapping[str, float]:
        key = digest(domain, *texts)
        if key not in known:
            # once each: copies of up-sampled texts spoil the counts that Kneser-Ney discounts by
            read = list(dict.fromkeys(train[domain]))
            ngram = NGram.train(read).bits_per_byte(texts)
            known[key] = {"ngram": ngram, "gzip": compressed("gzip", read, texts)}
        return known[key]

    return measure
