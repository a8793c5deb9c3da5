"""Rows that a student learns from its teachers on: their answers, and its own."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.optim import schedule
from etude.parallel.mesh import Ranks
from etude.parallel.shard import whole
from etude.recipe.post import Distill
from etude.rl.dialogue import Dialogue
from etude.rl.kept import Kept, load, save
from etude.rl.local import LocalSampler
from etude.rl.pairs import environments
from etude.rl.player import Player
from etude.rl.problems import Problem, draw
from etude.rl.rows import Rows, Told, rows, uncounted
from etude.rl.sampler import seed_of
from etude.rl.teacher import best_tokens
from etude.rl.toolbox import Toolbox

Row = tuple[Told, int, int]  # a conversation, its teacher, its place among the kept ones or -1


def ask(
    spec: Distill,
    teachers: Sequence[Callable[[], Decoder]],
    dialogue: Dialogue,
    toolbox: Toolbox,
    seed: int,
    ranks: Ranks,
    say: Callable[[str], None],
) -> Kept:
    """Let each teacher answer its share of the prompts, one teacher at a time.

    Args:
        spec: the stage.
        teachers: open them, in its order.
        dialogue, toolbox: how they are asked.
        seed: decides questions and answers.
        ranks: that share the sampling.
        say: told one line per teacher.

    Raises:
        EtudeError: a teacher of which no answer is left.
    """
    told: list[Told] = []
    about: dict[str, Any] = {"teacher": [], "counts": []}
    values: dict[str, list[np.ndarray]] = {"top_ids": [], "top_logp": []}
    for number, tutor in enumerate(spec.teachers):
        model = teachers[number]()
        player = _player(model, LocalSampler(model), dialogue, toolbox, spec, ranks)
        problems = _problems(spec, number, _shares(spec, spec.prompts)[number], seed)
        groups = player.play(problems, seed_of(seed, "answers"), temperature=spec.sampling)
        counts: Counter[str] = Counter(answers=len(groups))
        found = []
        for [sample] in groups:
            if spec.keep == "right" and sample.reward < 1:
                counts["wrong"] += 1
            elif len(sample.ids) > spec.length:
                counts["too long"] += 1
            else:
                found.append(Told(sample.ids, sample.mask))
        if not found and problems:
            why = ", ".join(f"{n} {name}" for name, n in counts.items())
            raise EtudeError(
                tutor.name, f"no answer is left ({why})", do="ask more, or longer ones"
            )
        say(f"{tutor.name}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
        if spec.form == "topk":
            ids, logp = best_tokens(model, found, spec)
            values["top_ids"] += [part.numpy() for part in ids]
            values["top_logp"] += [part.numpy() for part in logp]
        told += found
        about["teacher"] += [number] * len(found)
        about["counts"].append(dict(counts))
    return Kept(told, about, {name: own for name, own in values.items() if own})


def answers(path: Path, identity: str, make: Callable[[], Kept], ranks: Ranks) -> Kept:
    """Return what is kept in a file under an identity, made first where it is not."""
    found = load(path, identity)
    if found is None:
        found = make()
        if ranks.main:
            save(path, identity, found)
    ranks.barrier()
    return found


class AnswerSource:
    """`train.loop.Source` over teachers' answers and, anew for each step, the student's own.

    Args:
        model: the student, as it trains.
        spec: the stage.
        kept: the teachers' answers; None where all rows are the student's own.
        dialogue, toolbox: how it is asked.
        seed: of the order, questions and answers.
        ranks: processes that train together.
    """

    def __init__(
        self,
        model: Decoder,
        spec: Distill,
        kept: Kept | None,
        dialogue: Dialogue,
        toolbox: Toolbox,
        seed: int,
        ranks: Ranks,
    ):
        self.model, self.spec, self.kept, self.seed, self.ranks = model, spec, kept, seed, ranks
        self.sampler = LocalSampler(model)
        self.player = _player(model, self.sampler, dialogue, toolbox, spec, ranks)
        self.at = 0
        self._seen: dict[str, float] = {}

    def next(self, progress: Any) -> list[Rows]:
        """Return this rank's micro-batches of the next step."""
        self._seen = {}
        count = schedule.rows(self.spec.batch, progress.tokens, ranks=1)
        own = int((progress.step + 1) * count * self.spec.own_share)
        own -= int(progress.step * count * self.spec.own_share)  # over the steps, exactly the share
        mine = [*self._written(own, progress.step), *self._given(count - own)]
        self._seen["length"] = sum(told.length for told, _, _ in mine) / len(mine)
        mine.sort(key=lambda row: len(row[0].ids))
        size = (self.spec.batch.micro or count) * self.ranks.world
        return [self._build(mine[at : at + size]) for at in range(0, len(mine), size)]

    def metrics(self) -> dict[str, float]:
        """Mean length; of the student's own answers the share, reward and seconds; passes."""
        return dict(self._seen)

    def state(self) -> dict[str, Any]:
        """Answers read so far; what the student writes follows from the step."""
        return {"at": self.at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind them."""
        self.at = int(state["at"])

    def _given(self, count: int) -> list[Row]:
        if not count:
            return []
        assert self.kept is not None
        found, total = [], len(self.kept.told)
        for place in range(self.at, self.at + count):
            turn, inside = divmod(place, total)
            order = list(range(total))
            random.Random(seed_of(self.seed, "order", turn)).shuffle(order)
            i = order[inside]
            found.append((self.kept.told[i], self.kept.about["teacher"][i], i))
        self.at += count
        self._seen["epochs"] = self.at / total
        return found

    def _written(self, count: int, step: int) -> list[Row]:
        if not count:
            return []
        began = time.monotonic()
        sharded = self.ranks.mesh is not None
        weights = whole(self.model, self.ranks, everywhere=True) if sharded else None
        asyncio.run(self.sampler.update(weights, step))
        seed, problems, teachers = seed_of(self.seed, "own", step), list[Problem](), list[int]()
        for number, part in enumerate(_shares(self.spec, count, step)):
            problems += _problems(self.spec, number, part, seed)
            teachers += [number] * part
        groups = self.player.play(problems, seed, temperature=self.spec.sampling)
        self._seen["own"] = float(count)
        self._seen["reward"] = sum(group[0].reward for group in groups) / count
        self._seen["seconds_sampling"] = time.monotonic() - began
        told = [Told(group[0].ids, group[0].mask) for group in groups]
        return [(one, teacher, -1) for one, teacher in zip(told, teachers, strict=True)]

    def _build(self, part: Sequence[Row]) -> Rows:
        mine = list(part[self.ranks.rank :: self.ranks.world])
        if not mine:
            told, teacher, place = part[0]
            mine = [(uncounted(told), teacher, place)]
        made = rows([told for told, _, _ in mine])
        made = replace(made, teacher=torch.tensor([teacher for _, teacher, _ in mine]))
        if self.spec.form != "topk":
            return made
        assert self.kept is not None
        stored = [self.kept.values[name] for name in ("top_ids", "top_logp")]
        ids, logp = (_stack([v[i] for _, _, i in mine], made.ids.shape[1]) for v in stored)
        return replace(made, top_ids=ids.long(), top_logp=logp)


def _stack(values: Sequence[np.ndarray], width: int) -> torch.Tensor:
    found = np.zeros((len(values), width, values[0].shape[-1]), values[0].dtype)
    for row, own in enumerate(values):
        found[row, : len(own)] = own
    return torch.from_numpy(found)


def _player(
    model: Decoder,
    sampler: LocalSampler,
    dialogue: Dialogue,
    toolbox: Toolbox,
    spec: Distill,
    ranks: Ranks,
) -> Player:
    limits = {"max_tokens": spec.max_tokens, "length": model.arch.max_length}
    return Player(sampler, dialogue, toolbox, **limits, ranks=ranks)


def _problems(spec: Distill, number: int, count: int, seed: int) -> list[Problem]:
    tutor = spec.teachers[number]
    asked = environments(tutor.tasks, spec.thinking, tutor.turns)
    return draw(asked, count, seed_of(seed, "teacher", number, tutor.name))


def _shares(spec: Distill, count: int, turn: int = 0) -> list[int]:
    """Part `count` among the teachers by weight; what rounding leaves goes round by `turn`."""
    weights = [tutor.weight for tutor in spec.teachers]
    found = [int(count * weight / sum(weights)) for weight in weights]
    for extra in range(count - sum(found)):
        found[(turn + extra) % len(found)] += 1
    return found
