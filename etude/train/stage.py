"""One stage of a recipe, from wherever it stands to its checkpoint."""

import fnmatch
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from etude.errors import EtudeError, closest
from etude.files import digest
from etude.nn.decoder import Decoder
from etude.optim.build import optimizers
from etude.parallel.mesh import Ranks
from etude.parallel.shard import shard
from etude.recipe.stages import Train
from etude.train.checkpoint import State, publish
from etude.train.interrupt import Interrupt
from etude.train.lock import hold
from etude.train.log import Log
from etude.train.loop import Progress, Source, Trainer, Values, train
from etude.train.peaks import check_clip
from etude.train.rope import set_rope
from etude.train.step import Objective

STATE, CHECKPOINT, KEPT = "state", "checkpoint", "kept"


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a finished stage took, over all its starts.

    Attributes:
        seconds: spent in steps.
        tokens: seen, padding excluded.
        steps: optimizer steps, skipped ones included.
        skipped: steps left out because they were not finite.
    """

    seconds: float
    tokens: int
    steps: int
    skipped: int


class Stopped(EtudeError):
    """A stage that stopped because it was asked to; all it needs to go on is on disk."""


def run_stage(
    spec: Train,
    model: Decoder,
    source: Source,
    objective: Objective,
    folder: Path,
    *,
    log: Log,
    total: int,
    unit: Literal["tokens", "steps"] = "tokens",
    seed: int = 0,
    save_every: int = 50,
    ranks: Ranks | None = None,
    dtype: torch.dtype = torch.float32,
    key: str = "",
    threads: int = 0,
    interrupt: Callable[[], bool] | None = None,
) -> StageResult:
    """Train a stage to its end, going on from its saved state when there is one.

    Args:
        spec: the stage's numbers.
        model: trained in place; sharded in place when `ranks` have a mesh.
        source: of micro-batches.
        objective: loss per token.
        folder: of the stage: `state/` while it trains, `checkpoint/` in the published layout at its
            end.
        log: takes every step's values under the stage's name.
        total: what it trains for, in `unit`.
        unit: `tokens`, padding excluded, or `steps`.
        seed: of the global random numbers, set when the stage begins.
        save_every: steps between saved states.
        ranks: the processes that train together.
        dtype: of products when sharded; the weights themselves stay float32.
        key: names what else the stage was made from (data, starting weights). A state saved under
            another key, spec, seed, total or description is dropped.
        threads: CPU threads that the user asked for; 0 = a saved state's own stay with it.
        interrupt: asked after each step; true = save and stop. None = Ctrl-C and SIGTERM ask.

    Raises:
        Stopped: it was asked to; the same call goes on from there.
        EtudeError: another run holds the folder, it cannot be written, the state is damaged, or ten
            steps in a row were not finite.
    """
    ranks = ranks or Ranks()
    with _held(folder, ranks, interrupt) as asked:
        trainer = _trainer(spec, model, objective, ranks, seed=seed, dtype=dtype)
        own = _key(spec, model, seed, total, unit, key)
        state = State(
            folder / STATE, trainer.model, trainer.optimizers, source, ranks=ranks, key=own
        )
        progress = state.restore(Progress(total, unit), say=log.say, threads=threads)
        run = _Run(spec.name or folder.name, folder, trainer, source, state, log, asked)
        run.finish(progress, stopped=run.train(progress, save_every))
    return StageResult(progress.seconds, progress.tokens, progress.step, progress.skipped)


@contextmanager
def _held(
    folder: Path, ranks: Ranks, interrupt: Callable[[], bool] | None
) -> Iterator[Callable[[], bool]]:
    """Hold the folder, clear what a kill left in it, and yield what says whether to stop."""
    with ExitStack() as stack:
        if ranks.main:
            stack.enter_context(hold(folder))
            half_written = [*folder.glob(f".{CHECKPOINT}.*"), *(folder / KEPT).glob(".*")]
            for rest in half_written:
                shutil.rmtree(rest, ignore_errors=True)
        yield interrupt or stack.enter_context(Interrupt())


def _trainer(
    spec: Train,
    model: Decoder,
    objective: Objective,
    ranks: Ranks,
    *,
    seed: int,
    dtype: torch.dtype,
) -> Trainer:
    if spec.rope_theta or spec.yarn:
        set_rope(model, theta=spec.rope_theta, yarn=spec.yarn)
    check_clip(spec, model)
    torch.manual_seed(seed)
    random.seed(seed)
    _freeze(model, spec)
    model = shard(model, ranks, dtype=dtype)
    return Trainer(model, objective, optimizers(model, spec.optimizer), spec, ranks)


def _freeze(model: Decoder, spec: Train) -> None:
    """Take the weights that the stage leaves as they are from all that trains."""
    named = dict(model.named_parameters())
    for pattern in spec.frozen:
        found = fnmatch.filter(named, pattern)
        if not found:
            near = closest(pattern, list(named))
            raise EtudeError(f"{spec.name}.frozen", repr(pattern), "the name of a weight", near)
        for name in found:
            named[name].requires_grad = False
    if spec.frozen and not any(weight.requires_grad for weight in named.values()):
        raise EtudeError(f"{spec.name}.frozen", "every weight", "one that trains at least")


@dataclass(slots=True)
class _Run:
    """A stage that is under way."""

    name: str
    folder: Path
    trainer: Trainer
    source: Source
    state: State
    log: Log
    asked: Callable[[], bool]

    def train(self, progress: Progress, save_every: int) -> bool:
        """Train, log and save; return whether a stop was asked for, on any rank."""
        stop, before = False, progress.seen

        def after(values: Values) -> bool:
            nonlocal stop, before
            self.log.log(self.name, progress.step, values, seen=progress.seen)
            self._keep(before, progress)
            before = progress.seen
            stop = self.trainer.ranks.any(self.asked())
            due = stop or progress.step % save_every == 0
            if due and not progress.done and not progress.streak:
                self.state.save(progress)  # never over a good one while steps are not finite
            return stop

        total, unit = progress.total, progress.unit
        if self.trainer.ranks.main and not progress.step:
            shutil.rmtree(self.folder / KEPT, ignore_errors=True)  # of another beginning
        self.log.begin(self.name, total=total, unit=unit, step=progress.step, seen=progress.seen)
        try:
            train(self.trainer, self.source, progress, after=after)
        finally:
            self.log.end()
        return stop

    def _keep(self, before: int, progress: Progress) -> None:
        """Write a checkpoint that stays, where a step has passed the next multiple."""
        every = self.trainer.spec.keep_every
        if every and before // every < progress.seen // every and not progress.streak:
            place = self.folder / KEPT / str(progress.seen // every * every)
            publish(self.trainer.model, place, self.trainer.ranks)

    def finish(self, progress: Progress, *, stopped: bool) -> None:
        """Write the checkpoint of a stage that is done; say so when it was stopped."""
        if progress.done:
            publish(self.trainer.model, self.folder / CHECKPOINT, self.trainer.ranks)
            self.state.remove()
        if stopped:
            where = f"{progress.seen:,} of {progress.total:,} {progress.unit}"
            saved = "saved up to the last finite one" if progress.streak else "all saved"
            found = f"stopped after step {progress.step} ({where}), {saved}"
            code = getattr(self.asked, "code", 0) or 130  # 0: another rank was asked
            raise Stopped(self.name, found, do="the same command goes on from there", code=code)


def _key(spec: Train, model: Decoder, seed: int, total: int, unit: str, key: str) -> str:
    """Name all that decides a stage's numbers; how a step is cut into micro-batches does not."""
    spec = replace(spec, batch=replace(spec.batch, micro=None))
    return digest(repr(spec), repr(model.arch), str(seed), str(total), unit, key)
