"""How each kind of stage runs: where its data comes from, what it starts from, what it leaves.

This is the one place that knows data, reinforcement learning, evaluation and training at once.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from etude import posttraining
from etude.data.library import Library
from etude.data.loader import Loader
from etude.data.synth import Chat, written
from etude.data.tasks_fewshot import Materials
from etude.data.tokens import TokenSet
from etude.errors import EtudeError
from etude.evals.figures import measured
from etude.evals.harness import Seen, against, evaluate
from etude.evals.ladder import rung
from etude.files import digest, write_json
from etude.models import checkpoint, table
from etude.models.describe import compute, describe, planned, resized, unswapped
from etude.nn.decoder import Decoder
from etude.parallel.mesh import Ranks
from etude.reading import Packed, moves, text
from etude.recipe import parts
from etude.recipe.identity import figure_file, figure_key
from etude.recipe.load import as_data
from etude.recipe.post import Distill, Preference, RewardModel
from etude.recipe.stages import (
    Eval,
    Midtrain,
    Pretrain,
    Recipe,
    Rl,
    Sft,
    Stage,
    Trained,
    Unify,
)
from etude.text.chat import stop_ids
from etude.text.tokenizer import Tokenizer
from etude.train.log import Log
from etude.train.objective import NextToken
from etude.train.stage import StageResult, run_stage
from etude.train.step import Objective

Result = dict[str, Any]


@dataclass(slots=True)
class Workshop:
    """What all stages of one run share.

    Attributes:
        recipe: what is run.
        folder: of the run.
        log: of the run.
        ranks: the processes that train together.
        tokenizer: the vocabulary of every stage.
        library: every text a stage can name.
        names: identity of each stage.
    """

    recipe: Recipe
    folder: Path
    log: Log
    ranks: Ranks
    tokenizer: Tokenizer
    library: Library
    names: dict[str, str]

    def run(self, stage: Stage) -> Result:
        """Run one stage to its end and return what `done.json` keeps of it.

        Raises:
            EtudeError: a fault while working, or a request to stop.
        """
        match stage:
            case Eval():
                return self._evaluate(stage)
            case Rl():
                return posttraining.reinforce(self, stage)
            case Unify():
                return posttraining.unify(self, stage)
            case Preference():
                return posttraining.prefer(self, stage)
            case RewardModel():
                return posttraining.learn_reward(self, stage)
            case Distill():
                return posttraining.distil(self, stage)
            case Sft():
                return self.fine_tune(stage, self.written(stage.data), self.key(stage.data), {})
            case Pretrain() | Midtrain():
                return self._pretrain(stage)

    def model(self, stage: str) -> Decoder:
        """Return the weights of a finished stage, or the recipe's own start for `model`."""
        if stage == "model":
            return start(self.recipe, self.tokenizer)
        model = checkpoint.load(self.folder / "stages" / stage / "checkpoint")
        return model.to(self.ranks.device)

    def _fresh(self, stage: Pretrain | Midtrain) -> Decoder | None:
        """Return new weights of the stage's own size; None where it goes on from another stage."""
        if not isinstance(stage, Pretrain) or stage.fresh is None:
            return None
        return start(resized(self.recipe, stage.fresh), self.tokenizer)

    def _pretrain(self, stage: Pretrain | Midtrain) -> Result:
        data = stage.data
        mixes = [self._present(stage, "data.mix", mix) for mix in data.mixes]
        if not all(mixes):
            found = "names only domains that are not on this machine"
            do = "install the packages that are named above, or name other sets"
            raise EtudeError(f"{stage.name}.data.mix", found, do=do)
        sets = {name: self._open(name, data.fim) for name in dict.fromkeys(chain(*mixes))}
        how = {"joined": data.mask == "none", "changes": moves(data, mixes)}

        def loader(length: int, suffix: str) -> Loader:
            return self._loader(stage, sets, mixes[0], length, data.pack, suffix=suffix, **how)

        source = text(data, stage.batch, self.ranks.world, loader)
        return self.train(stage, source, NextToken(), stage.tokens, model=self._fresh(stage))

    def written(self, data: parts.Chats) -> Iterator[Chat]:
        """Yield the conversations that programs write, in the seed's order."""
        return written(data, self.recipe.seed)

    def key(self, data: parts.Chats) -> str:
        """Return the name of what `written` yields."""
        return digest(json.dumps(as_data(data), sort_keys=True), str(self.recipe.seed))

    def fine_tune(
        self, stage: Sft | Unify, chats: Iterator[Chat], key: str, told: Result
    ) -> Result:
        """Train on conversations; `key` names them in the cache, `told` goes to `done.json`."""
        loader, count = self.conversations(stage, stage.data, chats, key)
        source = Packed(loader, stage.batch, self.ranks.world)
        about = {"conversations": count, **told}
        mean = stage.aggregate if isinstance(stage, Sft) else "token"
        return self.train(stage, source, NextToken(mean), stage.tokens) | about

    def conversations(
        self, stage: Trained, data: parts.Chats, chats: Iterator[Chat], key: str, suffix: str = ""
    ) -> tuple[Loader, int]:
        """Return rows of conversations, with text among them, and how many conversations there are.

        Args:
            stage: whose rows they are.
            data: how long they are, and what is replayed.
            chats: read only where the cache has none by this key.
            key: names them there.
            suffix: tells apart several loaders of one stage.
        """
        chosen = self._on_main(
            lambda: self.library.chats(
                self.tokenizer,
                chats,
                key=key,
                length=data.length,
                learn_end=data.budget.learn_end,
            )
        )
        conversations, too_long = chosen
        if too_long:
            self.log.say(
                f"{stage.name}: {too_long} conversations above {data.length} tokens left out"
            )
        wanted = data.replay_mix if data.replay else {}
        shares = self._present(stage, "data.replay_mix", wanted)
        replayed = {name: self._open(name, 0.0) for name in shares}
        whole = sum(shares.values())
        mix = {"chats": 1 - data.replay} if replayed else {"chats": 1.0}
        mix |= {name: data.replay * share / whole for name, share in shares.items()}
        sets = {"chats": conversations, **replayed}
        loader = self._loader(stage, sets, mix, data.length, "best_fit", suffix=suffix)
        return loader, len(conversations)

    def train(
        self,
        stage: Trained,
        source: Any,
        objective: Objective,
        total: int,
        *,
        model: Decoder | None = None,
    ) -> Result:
        """Train a stage to its `total` tokens, or steps where it counts them.

        Without a model it starts where it says.
        """
        model = model or self.model(stage.start or "model")
        result: StageResult = run_stage(
            stage,
            model,
            source,
            objective,
            self.folder / "stages" / stage.name,
            log=self.log,
            total=total,
            unit="steps" if hasattr(stage, "steps") else "tokens",
            seed=self.recipe.seed,
            save_every=self.recipe.save_every,
            ranks=self.ranks,
            dtype=_dtype(self.recipe, self.ranks.device),
            key=self.names[stage.name],
            threads=self.recipe.threads,
        )
        told = {"tokens": result.tokens, "steps": result.steps, "skipped": result.skipped}
        return told | {"trained_seconds": round(result.seconds, 1)}

    def _evaluate(self, stage: Eval) -> Result:
        if self.ranks.main:
            baselines = against(_Training(self.library))
            domains = self.library.present(
                stage.domains, where=f"{stage.name}.domains", say=self.log.say
            )
            far = stage.by_length.domains if stage.by_length else ()
            names = dict.fromkeys([*domains, *far])
            documents = {d: self.library.held_out(d, stage.documents) for d in names}
            seen = Seen(_Training(self.library)) if stage.clean else None
            materials = self._materials()
            for name in stage.of:
                self._measure(stage, name, documents, baselines, seen, materials)
        self.ranks.barrier()
        return {"of": list(stage.of)}

    def _materials(self) -> Materials:
        """What few-shot tasks are made of: words and passages of the corpus' prose."""
        prose = [domain for domain in self.library.corpus.domains if domain != "code"]
        return Materials(
            lambda: chain.from_iterable(map(self.library.texts, prose)),
            lambda: [d.text for name in prose for d in self.library.documents(name, "held_out")],
        )

    def _measure(
        self,
        stage: Eval,
        name: str,
        documents: Mapping[str, Any],
        baselines: Any,
        seen: Any,
        materials: Materials,
    ) -> None:
        key = figure_key(stage, self.names[name])
        file = figure_file(self.recipe, stage, name)
        if measured(self.folder, file) == key:
            return
        figures, answers = evaluate(
            self.model(name),
            self.tokenizer,
            replace(stage, domains=tuple(d for d in stage.domains if d in documents)),
            name,
            documents,
            seed=self.recipe.seed,
            format=self.library.format,
            baselines=baselines,
            seen=seen,
            materials=materials,
            say=self.log.say,
        )
        if stage.ladder and name != "model":
            vocab = self.tokenizer.vocab_size
            size, tokens, flops = compute(self.recipe, name, vocab=vocab)
            figures["ladder"] = rung(figures["rows"], size, tokens, flops)
        order = [s.name for s in self.recipe.stages]
        place = order.index(name) + 1 if name in order else 0
        figures |= {"key": key, "order": place, "by": order.index(stage.name)}
        write_json(self.folder / "samples" / f"{file}.json", answers)
        write_json(self.folder / "evals" / f"{file}.json", figures)

    def _present(self, stage: Stage, key: str, mix: Mapping[str, float]) -> dict[str, float]:
        """Return what of a mixture can be had here; the others' shares grow to fill the rest."""
        where = f"{stage.name}.{key}"
        here = self.library.present(mix, where=where, say=self.log.say)
        return {name: mix[name] for name in here}

    def _open(self, name: str, fim: float) -> TokenSet:
        return self._on_main(lambda: self.library.open(self.tokenizer, name, fim=fim))

    def _on_main(self, make: Callable[[], Any]) -> Any:
        """Let the first rank make a cached set, then all open it."""
        if self.ranks.main:
            made = make()
            self.ranks.barrier()
            return made
        self.ranks.barrier()
        return make()

    def _loader(
        self,
        stage: Trained,
        sets: Mapping[str, TokenSet],
        mix: Mapping[str, float],
        length: int,
        pack: str,
        *,
        suffix: str = "",
        **how: Any,
    ) -> Loader:
        return Loader(
            sets,
            mix,
            length=length,
            rows=stage.batch.rows,
            seed=int(digest(str(self.recipe.seed), stage.name + suffix), 16) % 2**31,
            pack=pack,
            **how,
            rank=self.ranks.rank,
            world=self.ranks.world,
        )


class _Training(Mapping[str, Any]):
    """Training texts by set name, read when asked for."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def __getitem__(self, name: str) -> Iterator[str]:
        return self.library.texts(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.library.corpus.domains)

    def __len__(self) -> int:
        return len(self.library.corpus.domains)


def _dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    if recipe.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, recipe.dtype)


def start(recipe: Recipe, tokenizer: Tokenizer) -> Decoder:
    """Return the model before any stage: fresh weights, or a published checkpoint."""
    spec = recipe.model
    if spec.path is not None or spec.family is None:
        return checkpoint.load(spec.path or "")
    stops = stop_ids(tokenizer, format=table.family(spec.family).CHAT)
    pad = tokenizer.id(tokenizer.end)
    own = {"vocab_size": tokenizer.vocab_size, "eos_token_id": sorted(stops), "pad_token_id": pad}
    plan = planned(recipe, vocab=tokenizer.vocab_size)
    if plan == describe(unswapped(spec), vocab=tokenizer.vocab_size):
        model = checkpoint.create(spec.family, spec.size, seed=recipe.seed, **(own | spec.config))
    else:
        chat = table.family(spec.family).CHAT
        model = checkpoint.compose(plan, chat=chat, seed=recipe.seed, **own)
    assert model.published
    model.published = replace(model.published, tokenizer=tokenizer)
    return model
