"""The training loop: source -> objective -> step. Read this first.

Every stage is a source of micro-batches, a loss per token, and what trains. The loop knows nothing
else. One step:

1. the source gives this rank's micro-batches of one optimizer step;
2. what the losses are divided by is counted over all of them and all ranks, before the first
   forward;
3. each micro-batch runs forward, and its share of the loss backward: the objective's, that of the
   extra prediction depths, and the balance of experts within each sequence or over the whole step
   (whose choices are counted beforehand: see `_ahead`). Sharded gradients are summed over ranks on
   the way;
4. gradients are clipped together. A loss or gradient that is not finite leaves the weights alone;
5. the optimizers step, each router's selection bias moves against the load of this step, and heads
   whose attention scores were too large are scaled down where the recipe says so.

So the gradient is the same however a step is cut into micro-batches and ranks, and a step depends
on nothing but the weights, the optimizer's state, the progress and the source: which is all that a
resumed run restores.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from etude.errors import EtudeError
from etude.nn.decoder import Decoder, Scores
from etude.objectives import balance
from etude.objectives.language import IGNORE, next_token, with_mtp
from etude.optim import schedule
from etude.optim.build import Optimizers
from etude.parallel.mesh import Ranks
from etude.recipe.stages import Train
from etude.train.peaks import Watch, watch
from etude.train.step import Counts, Meter, Micro, Objective, clip, count, to
from etude.typing import Tensor

SKIPS_IN_A_ROW = 10
LOAD_EVERY = 10  # steps between logged loads of every expert
Values = dict[str, Any]
Loads = dict[int, Tensor]  # tokens per expert [E], by layer


@dataclass(slots=True)
class Progress:
    """How far a stage is.

    Attributes:
        total: what the stage trains for, in `unit`.
        unit: `tokens` (padding excluded) or `steps`.
        step: optimizer steps begun so far, skipped ones included.
        tokens: tokens seen, over all ranks.
        skipped: steps left out because a loss or gradient was not finite.
        streak: how many of them in a row, up to now.
        seconds: time spent in steps, over all starts of the stage.
    """

    total: int
    unit: Literal["tokens", "steps"] = "tokens"
    step: int = 0
    tokens: int = 0
    skipped: int = 0
    streak: int = 0
    seconds: float = 0.0

    @property
    def seen(self) -> int:
        """Progress in `unit`; what schedules are functions of."""
        return self.tokens if self.unit == "tokens" else self.step

    @property
    def done(self) -> bool:
        """Whether the stage has had all it trains for, and its last step was finite."""
        return self.seen >= self.total and not self.streak


class Source(Protocol):
    """Where micro-batches come from: packed text, conversations, rollouts.

    A method `metrics() -> dict[str, float]`, when there is one, adds to the log line of the step.
    A method `tensors() -> dict[str, Tensor]`, when there is one, gives live tensors that are saved
    and filled again in place.
    """

    def next(self, progress: Progress, /) -> Sequence[Micro]:
        """This rank's micro-batches of one step, equally many on all ranks; none = no signal."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON; the same on every rank."""
        ...

    def restore(self, state: Mapping[str, Any], /) -> None:
        """Go on exactly where `state` was taken."""
        ...


def train(
    trainer: "Trainer", source: Source, progress: Progress, *, after: Callable[[Values], bool]
) -> None:
    """Run steps until the stage is done, or `after`, which gets each step's values, says stop."""
    while not progress.done:
        started, tokens = time.perf_counter(), progress.tokens
        micros = source.next(progress)
        if not micros and progress.unit == "tokens":
            raise EtudeError("source", "gave no rows", "at least one per step", code=1)
        values = trainer.step(micros, progress)
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        values["tok_s"] = round((progress.tokens - tokens) / seconds, 1)
        if metrics := getattr(source, "metrics", None):
            values |= metrics()
        if after(values):
            return


@dataclass(slots=True)
class Trainer:
    """What one optimizer step needs."""

    model: Decoder
    objective: Objective
    optimizers: Optimizers
    spec: Train
    ranks: Ranks

    def step(self, micros: Sequence[Micro], progress: Progress) -> Values:
        """Take one step of the whole batch; advance `progress`; return what to log.

        Raises:
            EtudeError: ten steps in a row were not finite.
        """
        mtp = self.model.arch.mtp
        counts = count(micros, self.objective, depths=mtp.depth if mtp else 0, ranks=self.ranks)
        if not counts.labels:  # zero gradients would still decay weights and follow old momentum
            self._advance(progress, counts.tokens, finite=True)
            return {"idle": 1, "tokens": progress.tokens, "skipped": progress.skipped}
        coming = counts.tokens if progress.unit == "tokens" else 1
        factor = schedule.factor(self.spec.schedule, progress.seen, progress.total, batch=coming)
        lr = self.optimizers.rate(factor)
        meter, looks = Meter(self.ranks), watch(self.spec)
        chosen = self._ahead(micros, progress)
        for micro in micros:
            here = to(micro, self.ranks.device)
            scores = self._forward(here, progress, looks)
            self._loss(scores, here, counts, progress, meter, chosen).backward()
        norm = clip(self.optimizers.params, self.spec.clip)
        values: Values = meter.read()
        values |= looks.reduce(self.ranks) if looks else {}
        finite = math.isfinite(norm) and math.isfinite(values["loss"])
        if finite:
            self.optimizers.step()
            self._move_biases(meter, schedule.bias_rate(self.spec.balance, progress.seen))
            values |= looks.clip(self.model) if looks else {}
        self.optimizers.zero_grad()
        self._advance(progress, counts.tokens, finite=finite)
        values |= {"lr": lr, "grad_norm": norm}
        values |= {"tokens": progress.tokens, "skipped": progress.skipped}
        return values | _loads(meter, whole=progress.step % LOAD_EVERY == 1)

    def _forward(self, micro: Micro, progress: Progress, looks: Watch | None) -> Scores:
        scores = self.model(
            micro.ids,
            # of rows without a border no mask is built, which costs attention most of its time
            segments=None if getattr(micro, "whole", False) else micro.segments,
            pos=micro.pos,
            labels=micro.labels,
            temperature=getattr(micro, "temperature", 1.0),
            entropy=getattr(self.objective, "entropy", False),
            # without weight the extra block gets no gradient at all, and stands still
            mtp=schedule.mtp_weight(self.spec.mtp, progress.seen) > 0,
            peaks=looks is not None,
            routes=getattr(micro, "routes", None),
            shared=getattr(micro, "shared", None),
            reader=self.objective.reader(micro) if hasattr(self.objective, "reader") else None,
        )
        if looks:
            looks.add(scores.peaks)
        return scores

    def _loss(
        self,
        scores: Scores,
        micro: Micro,
        counts: Counts,
        progress: Progress,
        meter: Meter,
        chosen: Loads,
    ) -> Tensor:
        """This micro-batch's share of the step's loss."""
        token_loss, seen = self.objective(scores, micro)
        if scores.entropy is not None:
            seen = seen | {"entropy_exact": scores.entropy}
        loss = token_loss.sum() / max(counts.loss, 1e-9)
        meter.add("loss", loss)
        if getattr(self.objective, "pairs", False):  # values of pairs are averaged as their loss is
            meter.add_tokens(seen, token_loss.new_ones((), dtype=torch.bool), counts.loss)
        else:
            meter.add_tokens(seen, micro.labels != IGNORE, counts.labels)
        weight = schedule.mtp_weight(self.spec.mtp, progress.seen)
        loss = self._with_mtp(loss, scores, counts, weight, meter)
        return loss + self._balance(scores, counts, meter) + self._even(scores, chosen, meter)

    def _with_mtp(
        self, loss: Tensor, scores: Scores, counts: Counts, weight: float, meter: Meter
    ) -> Tensor:
        if not scores.mtp:
            return loss
        pairs = zip(scores.mtp, counts.mtp, strict=True)
        depths = [next_token(logp, labels)[0].sum() / max(n, 1.0) for (logp, labels), n in pairs]
        meter.add("mtp_loss", torch.stack(depths).mean())
        return with_mtp(loss, depths, weight=weight)

    def _balance(self, scores: Scores, counts: Counts, meter: Meter) -> Tensor | float:
        """Balance within rows, summed over MoE layers; meter their loads."""
        terms = []
        for route in scores.routes:
            load = balance.load(route.chosen, route.valid, experts=route.scores.shape[-1])
            meter.add_load(route.layer, load)
            rows = balance.sequence(route.scores.float(), route.chosen, route.valid)
            terms.append(rows.sum() / max(counts.rows, 1.0))
        if not terms:
            return 0.0
        total = torch.stack(terms).sum()
        meter.add("balance", total / len(terms))
        weight = self.spec.balance.sequence_weight
        return weight * total if weight else 0.0

    @torch.no_grad()
    def _ahead(self, micros: Sequence[Micro], progress: Progress) -> Loads:
        """Count each layer's choices over a step that is cut, before its first backward.

        The balance over the batch needs them all. Those of a micro-batch would make the gradient
        depend on the cut; those of the step before would have to be saved, and come too late while
        the router moves fast. So the micro-batches run forward once more, a third of a step's work.
        One that is not cut counts its own.
        """
        loads: Loads = {}
        if not self.spec.balance.batch_weight or len(micros) < 2:
            return loads
        for micro in micros:
            for layer, load in _sent(self._forward(to(micro, self.ranks.device), progress, None)):
                loads[layer] = loads.get(layer, 0) + load
        return {layer: self.ranks.sum(loads[layer]) for layer in sorted(loads)}

    def _even(self, scores: Scores, chosen: Loads, meter: Meter) -> Tensor | float:
        """This micro-batch's share of the balance over the whole step, summed over MoE layers."""
        spec = self.spec.balance
        if not spec.batch_weight or not scores.routes:
            return 0.0
        whole = chosen or {layer: self.ranks.sum(load) for layer, load in _sent(scores)}
        total, terms = 0.0, []
        for route in scores.routes:
            experts, active = route.scores.shape[-1], route.chosen.shape[-1]
            counts = whole[route.layer]
            term = balance.auxiliary(route.scores.float(), route.valid, counts, active=active)
            weight = balance.weight_of(spec.batch_form, experts=experts, active=active)
            total = total + spec.batch_weight * weight * term
            terms.append(term)
        meter.add("balance_batch", torch.stack(terms).mean())
        return total

    @torch.no_grad()
    def _move_biases(self, meter: Meter, rate: float) -> None:
        if not rate or not meter.loads:
            return
        loads = [load for _, load in sorted(meter.loads.items())]
        # an extra layer that did not run is the last router, and has no load
        for (_, router), load in zip(self.model.routers(), loads, strict=False):
            if router.bias is not None:
                router.bias.copy_(balance.bias_step(router.bias, load.float(), rate=rate))

    def _advance(self, progress: Progress, tokens: int, *, finite: bool) -> None:
        progress.step += 1
        progress.tokens += tokens
        progress.skipped += not finite
        progress.streak = 0 if finite else progress.streak + 1
        if progress.streak == SKIPS_IN_A_ROW:
            rows = f"{SKIPS_IN_A_ROW} steps in a row, up to step {progress.step}"
            found = f"loss or gradient not finite in {rows}"
            do = "lower the learning rate; the last saved state is as it was"
            raise EtudeError(self.spec.name or "train", found, do=do, code=1)


def _sent(scores: Scores) -> Iterator[tuple[int, Tensor]]:
    """Yield the layer and the tokens per expert of each route."""
    for route in scores.routes:
        experts = route.scores.shape[-1]
        yield route.layer, balance.load(route.chosen, route.valid, experts=experts)


def _loads(meter: Meter, *, whole: bool) -> Values:
    """Load of each layer's fullest expert, now and then of all, relative to an even share."""
    loads = {
        layer: load / load.mean().clamp(min=1e-9) for layer, load in sorted(meter.loads.items())
    }
    if not loads:
        return {}
    values: Values = {"max_load": [round(float(load.max()), 3) for load in loads.values()]}
    if whole:
        values["load"] = [[round(x, 3) for x in load.tolist()] for load in loads.values()]
    return values
