"""How each kind of stage runs: where its data comes from, what it starts from, what it leaves.

This is the one place that knows data, reinforcement learning, evaluation and training at once.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from etude.data.library import Library
from etude.data.loader import Batch, Loader
from etude.data.synth import Chat, sft
from etude.data.tokens import TokenSet
from etude.evals.harness import against, evaluate
from etude.files import digest, read_json, write_json
from etude.models import checkpoint, table
from etude.nn.decoder import Decoder
from etude.optim import schedule
from etude.parallel.mesh import Ranks
from etude.recipe import parts
from etude.recipe.load import as_data
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
from etude.rl.objective import policy_objective
from etude.rl.source import RolloutSource
from etude.rl.unify import collect
from etude.text.chat import stop_ids
from etude.text.tokenizer import Tokenizer
from etude.train.log import Log
from etude.train.loop import Progress
from etude.train.objective import NextToken
from etude.train.stage import StageResult, run_stage
from etude.train.step import Objective

Result = dict[str, Any]
REPEATS = 4  # times one expert's answer is seen at most, where few passed the filters


class Packed:
    """`train.loop.Source` over packed token sets, with the recipe's batch growth."""

    def __init__(self, loader: Loader, batch: parts.Batch, world: int) -> None:
        self.loader, self.batch, self.world = loader, batch, world

    def next(self, progress: Progress) -> Sequence[Batch]:
        """Return this rank's micro-batches of the next step."""
        rows = schedule.rows(self.batch, progress.tokens, ranks=self.world)
        found = self.loader.next(rows)
        return found.split(self.batch.micro) if self.batch.micro else [found]

    def metrics(self) -> Mapping[str, float]:
        """Return passes over each set so far."""
        return {f"epochs_{name}": round(passes, 3) for name, passes in self.loader.epochs.items()}

    def state(self) -> dict[str, Any]:
        """Return the position in the data."""
        return self.loader.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a position."""
        self.loader.restore(state)


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
                return self._reinforce(stage)
            case Unify():
                return self._unify(stage)
            case Sft():
                key = digest(json.dumps(as_data(stage.data), sort_keys=True), str(self.recipe.seed))
                return self._fine_tune(stage, self._written(stage.data), key, {})
            case Pretrain() | Midtrain():
                return self._pretrain(stage)

    def model(self, stage: str) -> Decoder:
        """Return the weights of a finished stage, or the recipe's own start for `model`."""
        if stage == "model":
            return start(self.recipe, self.tokenizer)
        model = checkpoint.load(self.folder / "stages" / stage / "checkpoint")
        return model.to(self.ranks.device)

    def _pretrain(self, stage: Pretrain | Midtrain) -> Result:
        sets = {name: self._open(name, stage.data.fim) for name in stage.data.mix}
        loader = self._loader(stage, sets, stage.data.mix, stage.data.length, stage.data.pack)
        return self._train(
            stage, Packed(loader, stage.batch, self.ranks.world), NextToken(), stage.tokens
        )

    def _written(self, data: parts.Chats) -> Iterator[Chat]:
        return sft(
            data.tasks, data.items, self.recipe.seed, thinking=data.thinking, lines=data.lines
        )

    def _fine_tune(
        self, stage: Sft | Unify, chats: Iterator[Chat], key: str, told: Result
    ) -> Result:
        data = stage.data
        chosen = self._on_main(
            lambda: self.library.chats(self.tokenizer, chats, key=key, length=data.length)
        )
        conversations, too_long = chosen
        if too_long:
            self.log.say(
                f"{stage.name}: {too_long} conversations above {data.length} tokens left out"
            )
        replayed = {name: self._open(name, 0.0) for name in data.replay_mix if data.replay}
        whole = sum(data.replay_mix.values()) or 1.0
        mix = {"chats": 1 - data.replay} if replayed else {"chats": 1.0}
        mix |= {name: data.replay * data.replay_mix[name] / whole for name in replayed}
        sets = {"chats": conversations, **replayed}
        loader = self._loader(stage, sets, mix, data.length, "best_fit")
        source = Packed(loader, stage.batch, self.ranks.world)
        about = {"conversations": len(conversations), **told}
        return self._train(stage, source, NextToken(), stage.tokens) | about

    def _unify(self, stage: Unify) -> Result:
        """Sample the experts once; a resumed stage finds the conversations on disk."""
        home = self.folder / "stages" / stage.name
        kept = home / "conversations.json"
        identity = self.names[stage.name]
        if not kept.exists() or read_json(kept)["identity"] != identity:
            found = collect(
                stage,
                self.tokenizer,
                self.model,
                self.recipe.seed,
                say=self.log.say,
                ranks=self.ranks,
            )
            plain = [[c.messages, c.tools, c.thinking] for c in found.chats]
            if self.ranks.main:
                write_json(kept, {"identity": identity, "chats": plain, "counts": found.counts})
            self.ranks.barrier()
        read = read_json(kept)
        expert = [Chat(messages, tools, thinking) for messages, tools, thinking in read["chats"]]
        chats = _blend(expert, list(self._written(stage.data)), stage.expert_share)
        told = {"kept": {name: dict(counts) for name, counts in read["counts"].items()}}
        return self._fine_tune(stage, iter(chats), digest(identity, "unify"), told)

    def _reinforce(self, stage: Rl) -> Result:
        model = self.model(stage.start or "model")
        total = stage.steps * stage.rollout.updates
        source = RolloutSource(
            model,
            self.tokenizer,
            stage,
            self.recipe.seed,
            records=self.folder / "rollouts" / f"{stage.name}.jsonl",
            say=self.log.say,
            ranks=self.ranks,
        )
        try:
            return self._train(stage, source, policy_objective(stage), total, model=model)
        finally:
            source.close()

    def _train(
        self,
        stage: Trained,
        source: Any,
        objective: Objective,
        total: int,
        *,
        model: Decoder | None = None,
    ) -> Result:
        model = model or self.model(stage.start or "model")
        result: StageResult = run_stage(
            stage,
            model,
            source,
            objective,
            self.folder / "stages" / stage.name,
            log=self.log,
            total=total,
            unit="steps" if isinstance(stage, Rl) else "tokens",
            seed=self.recipe.seed,
            save_every=self.recipe.save_every,
            ranks=self.ranks,
            dtype=_dtype(self.recipe, self.ranks.device),
            key=self.names[stage.name],
        )
        told = {"tokens": result.tokens, "steps": result.steps, "skipped": result.skipped}
        return told | {"trained_seconds": round(result.seconds, 1)}

    def _evaluate(self, stage: Eval) -> Result:
        if self.ranks.main:
            baselines = against(_Training(self.library))
            documents = {d: self.library.held_out(d, stage.documents) for d in stage.domains}
            for name in stage.of:
                self._measure(stage, name, documents, baselines)
        self.ranks.barrier()
        return {"of": list(stage.of)}

    def _measure(
        self, stage: Eval, name: str, documents: Mapping[str, Any], baselines: Any
    ) -> None:
        path = self.folder / "evals" / f"{name}.json"
        key = digest(self.names[name], json.dumps(as_data(replace(stage, of=("model",)))))
        if path.exists() and read_json(path).get("key") == key:
            return
        figures, answers = evaluate(
            self.model(name),
            self.tokenizer,
            stage,
            name,
            documents,
            seed=self.recipe.seed,
            baselines=baselines,
            say=self.log.say,
        )
        order = [s.name for s in self.recipe.stages]
        place = order.index(name) + 1 if name in order else 0
        write_json(self.folder / "samples" / f"{name}.json", answers)
        write_json(path, figures | {"key": key, "order": place})

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
    ) -> Loader:
        return Loader(
            sets,
            mix,
            length=length,
            rows=stage.batch.rows,
            seed=int(digest(str(self.recipe.seed), stage.name), 16) % 2**31,
            pack=pack,
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


def _blend(expert: list[Chat], written: list[Chat], share: float) -> list[Chat]:
    """Return conversations, `share` of them from the experts as far as `REPEATS` of each allow."""
    if share == 1:
        return expert
    wanted = round(len(written) * share / (1 - share))
    return (expert * min(REPEATS, -(-wanted // max(1, len(expert)))))[:wanted] + written


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
    pad = tokenizer.id("<|endoftext|>")
    own = {"vocab_size": tokenizer.vocab_size, "eos_token_id": sorted(stops), "pad_token_id": pad}
    model = checkpoint.create(spec.family, spec.size, seed=recipe.seed, **(own | spec.config))
    assert model.published
    model.published = replace(model.published, tokenizer=tokenizer)
    return model
