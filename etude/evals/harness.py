"""One stage measured: bits per byte of held-out documents, and held-out problems of each family."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from etude.data.baselines import NGram, compressed
from etude.evals.bits import bits_per_byte
from etude.evals.probes import Row, ask, row
from etude.files import digest
from etude.nn.decoder import Decoder
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
    format: str = "glm45",
    baselines: Baselines | None = None,
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
        toolbox: tools for the probes; None opens the shipped ones.
        say: called before each part.

    Returns:
        The figures as kept in `evals/<stage>.json`, and answers to read.
    """
    rows: list[Row] = []
    for domain in spec.domains:
        say(f"{stage}: bits per byte of {domain}")
        rows.append(_bits(model, tokenizer, spec, domain, documents[domain], baselines))
    shown: list[Row] = []
    own = toolbox or Toolbox()
    player = Player(
        LocalSampler(model),
        Dialogue(tokenizer, format),
        own,
        max_tokens=spec.max_tokens,
        length=model.arch.max_length,
    )
    try:
        for name, probe in spec.probes.items():
            say(f"{stage}: {name}")
            for found, answers in ask(player, name, probe, spec, seed):
                rows += found
                shown += answers
    finally:
        if toolbox is None:
            own.close()
    order = spec.of.index(stage) if stage in spec.of else len(spec.of)
    return {"stage": stage, "order": order, "rows": rows}, shown


def _bits(
    model: Decoder,
    tokenizer: Tokenizer,
    spec: Eval,
    domain: str,
    documents: Iterable[Text],
    baselines: Baselines | None,
) -> Row:
    measured, texts = [], []
    for document, _ in zip(documents, range(spec.documents), strict=False):
        ids = tokenizer.encode(document.text)[: spec.length]
        if len(ids) > 1:
            # the first token is given, so its bytes do not count
            measured.append((ids, len(tokenizer.decode_bytes(ids[1:]))))
            texts.append(tokenizer.decode_bytes(ids).decode(errors="ignore"))
    place = {"column": "language", "task": domain, "level": None, "mode": "-"}
    found = row(place, "bpb", bits_per_byte(model, measured, window=spec.length))
    return found | ({"baseline": dict(baselines(domain, texts))} if baselines else {})


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
