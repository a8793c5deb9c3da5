"""Rollouts as a source of training batches: sample, compare in groups, cut into optimizer steps.

A round samples `prompts` x `per_prompt` attempts with the weights of that moment and spends them in
`updates` optimizer steps, each on its own share of the problems. Groups whose rewards are all equal
teach nothing and are left out; how many, and whether they were all right or all wrong, is logged.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.objectives import advantage
from etude.parallel.mesh import Ranks
from etude.parallel.shard import whole
from etude.recipe.stages import Rl
from etude.rl import agreement, curriculum, temperature
from etude.rl.batch import RlBatch, micro_batches
from etude.rl.dialogue import Dialogue
from etude.rl.local import LocalSampler
from etude.rl.player import ALONE, Player
from etude.rl.problems import Problem, check, draw
from etude.rl.record import Records
from etude.rl.rollout import Sample
from etude.rl.sampler import Sampler, seed_of
from etude.rl.summary import summarise
from etude.rl.toolbox import Toolbox
from etude.text.tokenizer import Tokenizer
from etude.train.loop import Progress

MICRO_ROWS = 64  # attempts per forward where the recipe says nothing
SHOWN = 4  # recorded attempts of a problem
Scored = tuple[Sample, float]  # an attempt and its advantage


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


class RolloutSource:
    """`train.loop.Source` over rollouts of the model that trains.

    Args:
        model: the policy.
        tokenizer: with the chat format's special tokens.
        spec: the stage.
        seed: of problems, sampling and shuffling.
        format: name of the chat format.
        records: file for some rollouts of each round, or None.
        say: called with notices (fallbacks, a raised temperature, disagreement).
        sampler: what produces tokens; None is the engine in this process, on the model's own
            tensors, or on a copy of its own where they are sharded.
        toolbox: tools; None opens the shipped ones with the stage's time limit.
        dtype: of the sampler's copy, where there is one.
        ranks: the processes that train together.
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
    ):
        rollout = spec.rollout
        if rollout.updates > rollout.prompts:
            found = f"{rollout.updates} updates of {rollout.prompts} prompts"
            raise EtudeError("rollout.updates", found, "one prompt per update at least")
        check(spec.environments)
        self.model, self.spec, self.seed, self.say = model, spec, seed, say
        self.ranks, self.shared = ranks, sampler is None and ranks.mesh is None
        self.sampler = sampler or LocalSampler(model, dtype=dtype)
        self.player = Player(
            self.sampler,
            Dialogue(tokenizer, format),
            toolbox or Toolbox(seconds=rollout.tool_seconds),
            max_tokens=rollout.max_tokens,
            length=model.arch.max_length,
            format_penalty=spec.format_penalty,
            ranks=ranks,
        )
        self.records = Records(records if ranks.main else None, tokenizer)
        self.round, self.temperature = 0, rollout.temperature
        self.queue: list[list[Scored]] = []
        self.rewards: list[float] = []
        self.kept: curriculum.Selection | None = None
        self.recompute: bool | None = None
        self._begun = self._checked = False
        self._seen: dict[str, float] = {}
        self._returned = time.monotonic()

    def next(self, progress: Progress) -> list[RlBatch]:
        """Return one optimizer step's micro-batches of this rank; none when no group has signal."""
        training = time.monotonic() - self._returned
        self._seen = {}
        if not self.queue:
            self._play_round(progress.step)
        self._seen["seconds_training"] = training
        share = self.queue.pop(0)
        self._returned = time.monotonic()
        return self._batches(share)

    def metrics(self) -> dict[str, float]:
        """Return what the last call of `next` saw; a round's figures come with its first step."""
        return dict(self._seen)

    def state(self) -> dict[str, Any]:
        """Return everything a resumed run needs to go on identically, as JSON."""
        return {
            "round": self.round,
            "temperature": self.temperature,
            "rewards": self.rewards,
            "recompute": self.recompute,
            "kept": self.kept and self.kept.state(),
            "queue": [[_freeze(*scored) for scored in share] for share in self.queue],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.round, self.temperature = state["round"], state["temperature"]
        self.rewards, self.recompute = list(state["rewards"]), state["recompute"]
        kept = state["kept"]
        self.kept = curriculum.Selection.restore(self.spec, self.seed, kept) if kept else None
        self.queue = [[_thaw(row) for row in share] for share in state["queue"]]
        self._begun = False

    def close(self) -> None:
        """End the tools' processes."""
        self.player.toolbox.close()

    def _play_round(self, step: int) -> None:
        began = time.monotonic()
        if not self._begun:
            self.records.rewind(self.round)
            self._begun = True
        weights = None if self.shared else whole(self.model, self.ranks, everywhere=True)
        asyncio.run(self.sampler.update(weights, step))
        self._settle_difficulty()
        self._settle_temperature()
        problems = self._problems()
        groups = self.player.play(
            problems,
            seed_of(self.seed, "round", self.round),
            tries=self.spec.rollout.per_prompt,
            temperature=self.temperature,
        )
        rewards = torch.tensor([[sample.reward for sample in group] for group in groups])
        self._seen |= summarise(problems, groups) | {"temperature": self.temperature}
        self._seen["seconds_sampling"] = time.monotonic() - began
        self._settle_agreement(groups)
        self.rewards.append(float(rewards.mean()))
        self._record(problems, groups)
        self.queue = self._shares(groups, rewards)
        self.round += 1

    def _record(self, problems: list[Problem], groups: list[list[Sample]]) -> None:
        """Keep the best and worst attempts of two problems, of those with signal first."""
        pairs = list(zip(problems, groups, strict=True))
        pairs.sort(key=lambda pair: len({sample.reward for sample in pair[1]}) == 1)
        for problem, group in pairs[:2]:
            ranked = sorted(group, key=lambda sample: -sample.reward)
            about = {"task": problem.item.family, "level": problem.item.level}
            about |= {"answer": problem.item.answer, "temperature": self.temperature}
            best, worst = ranked[: SHOWN // 2], ranked[SHOWN // 2 :][-SHOWN // 2 :]
            self.records.write(self.round, best + worst, **about)

    def _shares(self, groups: list[list[Sample]], rewards: Tensor) -> list[list[Scored]]:
        """Cut the groups into one share per update, then leave out those without signal."""
        grpo = self.spec.objective
        advantages = advantage.group(rewards, std=grpo.std, eps=grpo.eps)
        useful = advantage.mixed(rewards).tolist()
        updates = self.spec.rollout.updates
        shares: list[list[Scored]] = [[] for _ in range(updates)]
        for p, (group, row) in enumerate(zip(groups, advantages.tolist(), strict=True)):
            if useful[p]:
                shares[p % updates] += zip(group, row, strict=True)
        return shares

    def _problems(self) -> list[Problem]:
        count = self.spec.rollout.prompts
        if self.kept is None:
            seed = seed_of(self.seed, "problems", self.round)
            return draw(self.spec.environments, count, seed)
        pool, found = self.kept.problems, []
        for place in range(self.round * count, (self.round + 1) * count):
            turn, at = divmod(place, len(pool))
            order = list(range(len(pool)))
            random.Random(seed_of(self.seed, "order", turn)).shuffle(order)
            found.append(pool[order[at]])
        return found

    def _settle_difficulty(self) -> None:
        """Measure the pool once, before the first round."""
        if self.spec.difficulty.keep == "all" or self.kept is not None:
            return
        self.kept = curriculum.select(self.player, self.spec, self.seed, say=self.say)
        self._seen |= self.kept.counts

    def _settle_temperature(self) -> None:
        rule = self.spec.temperature
        if rule is None or not temperature.stable(self.rewards, rule):
            return
        problems = draw(
            self.spec.environments,
            rule.problems,
            seed_of(self.seed, "temperature"),
            held_out=True,
        )
        scores = {}
        for value in rule.grid:
            seed = seed_of(self.seed, "temperature", self.round, value)
            groups = self.player.play(problems, seed, temperature=value)
            scores[value] = sum(group[0].reward for group in groups) / len(groups)
        before = self.temperature
        self.temperature = temperature.choose(scores, before, rule)
        self.rewards = []  # a new phase has its own history
        tried = " ".join(f"{value:g}:{score:.2f}" for value, score in scores.items())
        self.say(f"reward is stable: temperature {before:g} -> {self.temperature:g} ({tried})")

    def _settle_agreement(self, groups: list[list[Sample]]) -> None:
        """On the first round of a process, compare sampler and trainer; on disagreement rescore."""
        samples = [sample for group in groups for sample in group]
        rows = self.spec.batch.micro or MICRO_ROWS
        if not self._checked:
            gap = agreement.measure(self.model, samples[:rows], self.temperature)
            self._checked = True
            self._seen |= {"logp_gap": gap.largest, "logp_gap_mean": gap.mean}
            if self.recompute is None:  # a resumed run keeps to what its beginning found
                self.recompute = gap.largest > agreement.TOLERANCE
            if gap.largest > agreement.TOLERANCE:
                self.say(
                    f"sampler and trainer disagree by up to {gap.largest:.1e} in log-probability"
                    f" (mean {gap.mean:.1e}); old log-probabilities come from the trainer"
                )
        if self.recompute:
            agreement.rescore(self.model, samples, self.temperature, rows=rows)

    def _batches(self, share: list[Scored]) -> list[RlBatch]:
        batches = micro_batches(
            [sample for sample, _ in share],
            [advantage for _, advantage in share],
            self.spec.batch.micro or MICRO_ROWS,
            temperature=self.temperature,
            device=self.model.embed.weight.device,
            rank=self.ranks.rank,
            world=self.ranks.world,
        )
        return list(batches)


def _freeze(sample: Sample, score: float) -> list[Any]:
    own = [sample.ids, list(map(int, sample.mask)), sample.logp, sample.prompt, sample.reward]
    return [*own, score]


def _thaw(row: list[Any]) -> Scored:
    ids, mask, logp, prompt, reward, score = row
    return Sample(ids, list(map(bool, mask)), logp, prompt, reward), score
