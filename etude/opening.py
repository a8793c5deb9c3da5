"""Open a run folder: hold it, make corpus and vocabulary, choose threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from etude.data.corpus import Corpus, build
from etude.data.dedup import Near
from etude.data.library import Library, NoCorpus
from etude.data.quality import Pareto
from etude.errors import EtudeError
from etude.files import digest, read_json, sweep, write_json
from etude.models import table
from etude.models.describe import behind
from etude.parallel.launch import ranks as launch
from etude.parallel.mesh import Ranks
from etude.recipe.identity import identities
from etude.recipe.stages import Recipe
from etude.text.chat import new_tokenizer
from etude.text.tokenizer import Tokenizer
from etude.train.lock import hold
from etude.train.log import Log
from etude.train.threads import settle
from etude.workshop import Workshop, start


@contextmanager
def open_run(recipe: Recipe, folder: Path, *, as_json: bool) -> Iterator[Workshop]:
    """Take a run folder, make corpus and vocabulary, choose threads, and yield the workshop.

    Raises:
        EtudeError: another run works in the folder, or it cannot be written.
    """
    with launch(recipe.device) as ranks:
        log = Log(folder, sinks=recipe.log, console="json" if as_json else "auto", main=ranks.main)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EtudeError(
                str(folder), f"cannot be written ({error.strerror})", code=1
            ) from error
        with _alone(folder, ranks):
            if not ranks.main:
                ranks.barrier()
            corpus = _corpus(recipe, log)
            library = Library(corpus, recipe.corpus.documents, recipe.seed, format=_chat(recipe))
            tokenizer = _tokenizer(recipe, library, folder, log)
            if ranks.main:
                write_json(folder / "corpus.json", corpus.manifest)
                ranks.barrier()
            _threads(recipe, tokenizer, folder, ranks)
            shop = Workshop(recipe, folder, log, ranks, tokenizer, library, identities(recipe))
            try:
                yield shop
            finally:
                log.close()


@contextmanager
def _alone(folder: Path, ranks: Ranks) -> Iterator[None]:
    if not ranks.main:
        yield
        return
    with hold(folder):
        sweep(folder)
        yield


def _corpus(recipe: Recipe, log: Log) -> Corpus | NoCorpus:
    if recipe.corpus.size == "none":
        return NoCorpus()
    spec = recipe.corpus
    near = replace(Near(), threshold=spec.similarity, permutations=spec.hashes)
    rules: dict[str, Any] = {"keep": spec.keep, "pareto": Pareto(spec.alpha), "near": near}
    rules["decontaminate"] = spec.decontaminate
    return build(spec.size, progress=log.progress, rules=rules)


def _chat(recipe: Recipe) -> str | None:
    """The chat format of the recipe's family, or of the checkpoint that it starts from."""
    if recipe.model.family:
        return table.family(recipe.model.family).CHAT
    from etude.weights.hub import locate

    config = read_json(behind(locate(recipe.model.path or "")) / "config.json")
    family = table.by_model_type(config).__name__.rpartition(".")[2]
    return table.chat_format(family, config)


def _tokenizer(recipe: Recipe, library: Library, folder: Path, log: Log) -> Tokenizer:
    if recipe.tokenizer.path:
        from etude.weights.hub import locate

        return Tokenizer.load(locate(recipe.tokenizer.path))
    home = folder / "tokenizer"
    made_of = (recipe.tokenizer, library.corpus.manifest.get("key"), recipe.seed, library.format)
    key = digest(*map(str, made_of))
    if (home / "key.json").exists() and read_json(home / "key.json") == key:
        return Tokenizer.load(home)
    log.say(f"tokenizer: {recipe.tokenizer.vocab} tokens")
    sample = library.sample(recipe.tokenizer.sample_bytes)
    made = new_tokenizer(sample, recipe.tokenizer.vocab, format=library.format)
    made.save(home)
    write_json(home / "key.json", key)
    return Tokenizer.load(home)


def _threads(recipe: Recipe, tokenizer: Tokenizer, folder: Path, ranks: Ranks) -> None:
    """Choose the threads once a run; ranks on one machine share its cores evenly."""
    if ranks.world > 1 or ranks.device.type != "cpu":
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        return
    model = start(recipe, tokenizer)
    ids = torch.zeros(8, 128, dtype=torch.long)

    def probe() -> None:
        model(ids, segments=torch.ones_like(ids), labels=ids).logp.sum().backward()

    settle(folder, recipe.threads, probe)
