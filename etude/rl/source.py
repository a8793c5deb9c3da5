"""Rollouts as a source of training batches: sample, compare in groups, cut into optimizer steps.

A round samples `prompts` x `per_prompt` attempts and spends them in `updates` optimizer steps, each
on its own share of the problems. Where its attempts come from, and how old they may be, is the
supply's (`rl.supply`); what is made of them is here: rewards, scores, advantages, shares. Groups in
which no token has an advantage teach nothing and are left out; how many, and why, is logged.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.parallel.mesh import Ranks
from etude.parallel.shard import whole
from etude.recipe.stages import Rl
from etude.rl import agreement, credit, curriculum, rewards, temperature
from etude.rl.batch import RlBatch, micro_batches
from etude.rl.curriculum_pace import Pace, see
from etude.rl.curriculum_rules import Curriculum
from etude.rl.dialogue import Dialogue
from etude.rl.frozen import freeze, thaw
from etude.rl.judge_models import Judges, Stages
from etude.rl.local import LocalSampler
from etude.rl.player import ALONE, Player
from etude.rl.problems import Problem, check
from etude.rl.record import Records
from etude.rl.reference import Scorer
from etude.rl.rounds import Group, Round, Rounds
from etude.rl.sample import Sample
from etude.rl.sampler import Sampler, seed_of
from etude.rl.summary import failures, summarise
from etude.rl.supply import Beside, Now, OneStep, Supply
from etude.rl.toolbox import Toolbox
from etude.text.tokenizer import Tokenizer
from etude.train.loop import Progress

MICRO_ROWS = 64  # attempts per forward where the recipe says nothing
Groups = Sequence[Sequence[Sample]]
# writes the advantages of attempts at problems, and returns figures
Credit = Callable[[Sequence[Problem], Groups], dict[str, float]]


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


class RolloutSource:
    """`train.loop.Source` over rollouts of the model that trains.

    Args:
        model: the policy, with the weights the stage starts from.
        tokenizer: with the chat format's special tokens.
        spec: the stage.
        seed: of problems, sampling and shuffling.
        format: name of the chat format.
        records: file for some rollouts of each round, or None.
        say: called with notices (fallbacks, a raised temperature, disagreement, failures).
        sampler: what produces tokens; None is the engine in this process, on the model's own
            tensors, or on a copy where they are sharded or train meanwhile.
        toolbox: tools; None opens the shipped ones with the stage's time limit.
        dtype: of the sampler's copy, where there is one.
        ranks: the processes that train together.
        credit: in the place of the objective's estimator, as of a teacher.
        judges: opens the stages that reward this one; None = there are none.

    Raises:
        EtudeError: the stage asks for what does not go together.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        spec: Rl,
        seed: int,
        *,
        format: str | None = "glm45",
        records: Path | None = None,
        say: Callable[[str], None] = _tell,
        sampler: Sampler | None = None,
        toolbox: Toolbox | None = None,
        dtype: torch.dtype = torch.float32,
        ranks: Ranks = ALONE,
        credit: Credit | None = None,
        judges: Stages | None = None,
    ):
        rollout = spec.rollout
        _check(spec, model, ranks)
        self.model, self.spec, self.seed, self.say = model, spec, seed, say
        self.ranks, self.credit = ranks, credit
        apart = rollout.mode != "sync"
        self.shared = sampler is None and ranks.mesh is None and not apart
        overlap = rollout.overlap or rollout.mode == "async"
        how = {"dtype": dtype, "copy": apart and ranks.mesh is None, "overlap": overlap}
        self.sampler = sampler or LocalSampler(model, **how)
        cut = rollout.repetition and (rollout.repetition.tokens, rollout.repetition.probability)
        self.player = Player(
            self.sampler,
            Dialogue(tokenizer, format),
            toolbox or Toolbox(seconds=rollout.tool_seconds),
            max_tokens=rollout.max_tokens,
            length=model.arch.max_length,
            format_penalty=spec.format_penalty,
            ranks=ranks,
            seconds=rollout.seconds,
            repetition=cut,
            routes=rollout.routes,
            budget=rollout.budget,
            overlap=overlap,
        )
        self.records = Records(records if ranks.main else None, tokenizer, rollout.record, say)
        self.scorer = Scorer(model, spec, ranks=ranks, seed=seed)
        self.curriculum = Curriculum(spec)
        count = lambda text: len(tokenizer.encode(text))  # noqa: E731
        models = Judges(self.sampler, self.player.dialogue, judges)
        self.terms = rewards.Rewards(spec, models, seed, count=count, say=say, ranks=ranks)
        self.rounds = Rounds(self.player, spec, seed)
        self.supply = self._supplier()
        self.round, self.temperature = 0, rollout.temperature
        self.queue: list[list[Sample]] = []
        self.heat = self.temperature  # at which the queue was sampled
        self.rewards: list[float] = []
        self.recompute: bool | None = None
        self._begun = self._checked = False
        self._seen: dict[str, float] = {}
        self._step = 0
        self._returned = time.monotonic()

    def next(self, progress: Progress) -> list[RlBatch]:
        """Return one optimizer step's micro-batches of this rank; none when no group has signal."""
        training = time.monotonic() - self._returned
        self._seen, self._step = {}, progress.step
        if not self.queue:
            self._begin_round(progress.step)
        self._seen["seconds_training"] = training
        share = self.queue.pop(0)
        self._returned = time.monotonic()
        return self._batches(share)

    def metrics(self) -> dict[str, float]:
        """Return what the last call of `next` saw; a round's figures come with its first step."""
        return dict(self._seen)

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors beside the model's, saved and filled again in place."""
        return self.scorer.tensors()

    def state(self) -> dict[str, Any]:
        """Return everything a resumed run needs to go on identically, as JSON."""
        return {
            "round": self.round,
            "temperature": self.temperature,
            "heat": self.heat,
            "rewards": self.rewards,
            "recompute": self.recompute,
            "kept": self.rounds.kept and self.rounds.kept.state(),
            "queue": [[freeze(sample) for sample in share] for share in self.queue],
            "supply": self.supply.state(),
            "scorer": self.scorer.state(),
            "curriculum": self.curriculum.state(),
            "terms": self.terms.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.round, self.temperature = state["round"], state["temperature"]
        self.heat = state["heat"]
        self.rewards, self.recompute = list(state["rewards"]), state["recompute"]
        kept = state["kept"]
        found = curriculum.Selection.restore(self.spec, self.seed, kept) if kept else None
        self.rounds.kept = found
        self.queue = [[thaw(row) for row in share] for share in state["queue"]]
        self.scorer.restore(state["scorer"])
        self.curriculum.restore(state["curriculum"])
        self.terms.restore(state["terms"])
        if lost := self.supply.restore(state["supply"]):
            self.say(f"{lost} unfinished attempts begin anew: their environments answer otherwise")
        self._begun = False

    def close(self) -> None:
        """End the sampling and the tools' processes."""
        self.supply.close()
        self.terms.close()
        self.player.toolbox.close()

    def _supplier(self) -> Supply:
        rollout = self.spec.rollout
        if rollout.mode == "one_step":
            return OneStep(self.rounds, self.sampler)
        if rollout.mode == "async":
            ahead = max(1, rollout.max_age // rollout.updates)
            return Beside(self.rounds, self.sampler, max_age=rollout.max_age, ahead=ahead)
        return Now(self.rounds)

    def _pace(self, round: int) -> Pace:
        return self.curriculum.pace(round).over(Pace(temperature=self.temperature))

    def _weights(self) -> dict[str, Tensor] | None:
        """The policy's weights for the sampler: None where it reads the model's own."""
        if self.shared:
            return None
        found = whole(self.model, self.ranks, everywhere=True)
        if self.spec.rollout.mode == "sync":
            return found
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def _begin_round(self, step: int) -> None:
        first, self._begun = not self._begun, True
        if first:
            self.records.rewind(self.round)
        with self._timed("seconds_sampling"):
            if first or self.spec.rollout.mode == "sync":
                with self._timed("seconds_sync"):
                    asyncio.run(self.sampler.update(self._weights(), step))
            self._settle_difficulty()
            self._settle_temperature()
            self._profile()
            played = self.supply.take(self.round, step, self._weights, self._pace)
        self.heat = played.temperature
        problems = [group.problem for group in played.groups]
        groups = [group.samples for group in played.groups]
        with self._timed("seconds_reward"):
            self._reward(problems, groups)
        self._seen |= summarise(problems, groups, step=step) if groups else {}
        self._seen |= played.seen | {"temperature": self.heat} | self.curriculum.metrics(self.round)
        for text in failures(groups):
            self.say(text)
        self.queue = self._shares(played, problems, groups)
        self.round += 1

    def _reward(self, problems: list[Problem], groups: Groups) -> None:
        window = self._pace(self.round).max_tokens or self.spec.rollout.max_tokens
        how = {"round": self.round, "length": window}
        self._seen |= rewards.apply(self.terms, problems, groups, **how)

    def _profile(self) -> None:
        """Measure pass rates, where a curriculum asks for them."""

        def play(problems: Sequence[Problem], seed: int) -> list[list[Sample]]:
            return self.player.play(problems, seed, temperature=self.temperature)

        seed = seed_of(self.seed, "profile", self.round)
        if told := self.curriculum.profile(play, self.round, seed):
            self.say(told)

    def _shares(self, played: Round, problems: list[Problem], groups: Groups) -> list[list[Sample]]:
        """Score the attempts, compare them, and cut their groups into one share per update."""
        updates = self.spec.rollout.updates
        shares: list[list[Sample]] = [[] for _ in range(updates)]
        if not groups:
            return shares
        self.rewards.append(self._seen["reward"])
        if told := self.curriculum.observe(self.round, see(problems, groups)):
            self.say(told)
        self._mask(groups)
        chosen = [group for group in played.groups if group.useful]
        with self._timed("seconds_scoring"):
            self._score([sample for group in chosen for sample in group.samples])
            self._credit(chosen)
        how = {"temperature": self.heat, "version": self._step}
        self.records.keep(self.round, problems, groups, **how)
        for p, group in enumerate(chosen):
            if credit.useful(group.samples):
                shares[p % updates] += [s for s in group.samples if self._trains(s)]
        return shares

    def _mask(self, groups: Groups) -> None:
        """Leave untrained what was forced, and older weights' tokens where the recipe says so."""
        for sample in (sample for group in groups for sample in group):
            for place in sample.forced or ():
                sample.mask[place] = False
            if self.spec.rollout.older == "mask":
                pairs = zip(sample.mask, sample.versions or (), strict=False)
                sample.mask = [own and version == sample.version for own, version in pairs]

    def _trains(self, sample: Sample) -> bool:
        rollout = self.spec.rollout
        if sample.info.get("repetition") and rollout.repetition and rollout.repetition.mask:
            return False
        cut = sample.status == "truncated" and rollout.truncated == "mask"
        return any(sample.mask) and not cut

    def _score(self, samples: list[Sample]) -> None:
        samples = [sample for sample in samples if any(sample.mask)]
        if not samples:
            return
        rows = self.spec.batch.micro or MICRO_ROWS
        self._settle_agreement(samples[:rows])
        old = bool(self.recompute) and self.spec.rollout.mode == "sync"
        self._seen |= self.scorer.fill(samples, self.heat, rows, old=old)

    def _credit(self, chosen: list[Group]) -> None:
        """Fill the advantages, and let the critic learn."""
        groups = [group.samples for group in chosen]
        if not groups:
            return
        if self.credit is None:
            self._seen |= credit.assign(groups, self.spec.objective)
        else:
            self._seen |= self.credit([group.problem for group in chosen], groups)
        samples = [sample for group in groups for sample in group]
        self._seen |= self.scorer.learn(samples, self.spec.batch.micro or MICRO_ROWS)

    def _settle_difficulty(self) -> None:
        """Measure the pool once, before the first round."""
        if self.spec.difficulty.keep == "all" or self.rounds.kept is not None:
            return
        self.rounds.kept = curriculum.select(self.player, self.spec, self.seed, say=self.say)
        self._seen |= self.rounds.kept.counts

    def _settle_temperature(self) -> None:
        how = {"round": self.round, "rewards": self.rewards, "current": self.temperature}
        found = temperature.settle(self.player, self.spec, self.seed, **how)
        if found[1]:
            self.temperature = found[0]
            self.rewards = []  # a new phase has its own history
            self.say(found[1])

    def _settle_agreement(self, samples: list[Sample]) -> None:
        """Compare sampler and trainer once in a process, on attempts of the present weights."""
        if self._checked or any(sample.oldest != self._step for sample in samples):
            return
        gap = agreement.measure(self.model, samples, self.heat)
        self._checked = True
        self._seen |= {"logp_gap": gap.largest, "logp_gap_mean": gap.mean}
        if self.recompute is None:  # a resumed run keeps to what its beginning found
            self.recompute = gap.largest > agreement.TOLERANCE
        if gap.largest > agreement.TOLERANCE:
            self.say(gap.told)

    def _batches(self, share: list[Sample]) -> list[RlBatch]:
        batches = micro_batches(
            share,
            self.spec.batch.micro or MICRO_ROWS,
            temperature=self.heat,
            device=self.model.embed.weight.device,
            rank=self.ranks.rank,
            world=self.ranks.world,
            note=self._note if self.records.path is not None else None,
            together=self.model.shares,
        )
        return list(batches)

    def _note(
        self,
        sample: Sample,
        ratio: list[float],
        clipped: list[bool],
        entropy: list[float] | None,
    ) -> None:
        self.records.trained(sample.key, self._step, ratio, clipped, entropy)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seen[name] = self._seen.get(name, 0.0) + time.monotonic() - began


def _check(spec: Rl, model: Decoder, ranks: Ranks) -> None:
    rollout = spec.rollout
    if rollout.updates > rollout.prompts:
        found = f"{rollout.updates} updates of {rollout.prompts} prompts"
        raise EtudeError("rollout.updates", found, "one prompt per update at least")
    if rollout.routes and not any(True for _ in model.routers()):
        raise EtudeError("rollout.routes", "this model has no experts", do="set it to false")
    if ranks.world > 1 and (rollout.mode == "async" or rollout.partial):
        found = f"{'mode async' if rollout.mode == 'async' else 'partial'} on {ranks.world} ranks"
        raise EtudeError("rollout", found, "one process that trains", "use mode sync or one_step")
    moving = spec.temperature or spec.curriculum.pass_rate
    if rollout.mode != "sync" and moving:
        found = f"mode {rollout.mode} beside a rule that samples between rounds"
        raise EtudeError("rollout.mode", found, "sync", "drop temperature or curriculum.pass_rate")
    check(spec.environments)
