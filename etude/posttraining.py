"""How the stages behind pre-training run: reinforcement learning, experts, pairs, teachers.

Each function takes the workshop, which holds what all stages of a run share, and returns what
`done.json` keeps of the stage.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etude.data.loader import Loader
from etude.data.synth import Chat
from etude.data.synth_chats import assistant, user
from etude.errors import EtudeError
from etude.files import digest, read_json, write_json
from etude.models import checkpoint
from etude.nn.decoder import Decoder
from etude.recipe.post import Distill, Paired, Preference, RewardModel, Tutor
from etude.recipe.stages import Rl, Unify
from etude.rl import paired, pairs, reward_model
from etude.rl.answers import AnswerSource, answers, ask
from etude.rl.dialogue import Dialogue
from etude.rl.engines import opened
from etude.rl.judge import Lesson
from etude.rl.judge_models import Stages
from etude.rl.kept import Kept
from etude.rl.local import LocalSampler
from etude.rl.objective import policy_objective
from etude.rl.paired import Batches, Given, PairSource, PreferenceObjective, RewardObjective
from etude.rl.player import Player
from etude.rl.ptx import WithSupervised
from etude.rl.rows import Told
from etude.rl.sampler import seed_of
from etude.rl.source import RolloutSource
from etude.rl.taught import Taught, needs
from etude.rl.teacher import DistillObjective, TokenTeachers, admit
from etude.rl.toolbox import Toolbox
from etude.rl.unify import collect
from etude.train.objective import NextToken
from etude.train.stage import CHECKPOINT

if TYPE_CHECKING:
    from etude.workshop import Workshop

Result = dict[str, Any]
REPEATS = 4  # times one expert's answer is seen at most, where few passed the filters


def unify(shop: "Workshop", stage: Unify) -> Result:
    """Sample the experts once; a resumed stage finds the conversations on disk."""
    home = shop.folder / "stages" / stage.name
    kept = home / "conversations.json"
    identity = shop.names[stage.name]
    if not kept.exists() or _conversations(kept)["identity"] != identity:
        found = collect(
            stage,
            shop.tokenizer,
            shop.model,
            shop.recipe.seed,
            format=shop.library.format,
            say=shop.log.say,
            ranks=shop.ranks,
        )
        plain = [[c.messages, c.tools, c.thinking] for c in found.chats]
        if shop.ranks.main:
            write_json(kept, {"identity": identity, "chats": plain, "counts": found.counts})
        shop.ranks.barrier()
    read = _conversations(kept)
    expert = [Chat(messages, tools, thinking) for messages, tools, thinking in read["chats"]]
    chats = _blend(expert, list(shop.written(stage.data)), stage.expert_share)
    told = {"kept": {name: dict(counts) for name, counts in read["counts"].items()}}
    return shop.fine_tune(stage, iter(chats), digest(identity, "unify"), told)


def reinforce(shop: "Workshop", stage: Rl) -> Result:
    """Train on rollouts of the model itself."""
    model = shop.model(stage.start or "model")
    total = stage.steps * stage.rollout.updates
    published = shop.folder / "stages" / stage.name / "published"  # what a server elsewhere reads
    how = {"say": shop.log.say, "ranks": shop.ranks}
    with opened(stage, model, folder=published, tokenizer=shop.tokenizer, **how) as (
        sampler,
        group,
    ):
        source = RolloutSource(
            model,
            shop.tokenizer,
            stage,
            shop.recipe.seed,
            format=shop.library.format,
            records=shop.folder / "rollouts" / f"{stage.name}.jsonl",
            sampler=sampler,
            judges=Stages(shop.model, partial(_scorer, shop)),
            **how,
        )
        source.player.group = group
        if pull := stage.objective.kl.reference:
            source.scorer.refer(shop.model(pull))
        if teachers := _token_teachers(shop, stage, model):
            source.credit = lambda problems, groups: teachers.credit(
                problems, groups, temperature=source.heat
            )
        try:
            if not needs(stage):
                return shop.train(stage, source, policy_objective(stage), total, model=model)
            both = Taught(source, stage, _curated(shop, stage), partial(_lesson, shop), shop.ranks)
            objective = WithSupervised(policy_objective(stage))
            return shop.train(stage, both, objective, total, model=model)
        finally:
            source.close()


def _scorer(shop: "Workshop", name: str) -> reward_model.RewardModel:
    return reward_model.load(shop.folder / "stages" / name, device=shop.ranks.device)


def _curated(shop: "Workshop", stage: Rl) -> Loader | None:
    """Return the conversations that an rl stage learns by heart."""
    if stage.ptx is None:
        return None
    data = stage.ptx.data
    return shop.conversations(stage, data, shop.written(data), shop.key(data), " ptx")[0]


def _lesson(shop: "Workshop", lesson: Lesson) -> Told:
    messages = [user(lesson[0]), assistant(lesson[1])]
    return pairs.encode(shop.tokenizer, messages, None, False, shop.library.format)


def prefer(shop: "Workshop", stage: Preference) -> Result:
    """Train on pairs of answers, which are made, and scored by the reference, once."""
    reference = (stage.reference or stage.start or "model") if stage.loss.refers else None
    kept, counts = _pairs(shop, stage, reference)
    objective = PreferenceObjective(stage.loss)
    model = shop.model(stage.start or "model")
    return _learn_pairs(shop, stage, model, kept, objective) | {"pairs": counts}


def learn_reward(shop: "Workshop", stage: RewardModel) -> Result:
    """Train a scalar reward on pairs; its accuracy on held-out ones stays beside its checkpoint."""
    kept, counts = _pairs(shop, stage, None)
    objective = RewardObjective(stage.margin, stage.centring)
    model = reward_model.RewardDecoder(shop.model(stage.start or "model"))
    told = _learn_pairs(shop, stage, model, kept, objective, last=True)
    if shop.ranks.main:
        about = {name: told[name] for name in ("held_out_accuracy", "held_out_margin")}
        about["held_out_pairs"] = counts["held_out"]
        folder = shop.folder / "stages" / stage.name / CHECKPOINT
        write_json(folder / reward_model.ABOUT, about)
    return told | {"pairs": counts}


def distil(shop: "Workshop", stage: Distill) -> Result:
    """Learn from teachers: their answers are asked for once, their probabilities as they come."""
    student = shop.model(stage.start or "model")
    dialogue, toolbox = Dialogue(shop.tokenizer, shop.library.format), Toolbox()
    seed, ranks = seed_of(shop.recipe.seed, stage.name), shop.ranks
    opens = [partial(_teacher, shop, tutor, student, stage.name) for tutor in stage.teachers]
    try:
        kept = None
        if stage.own_share < 1:
            path = shop.folder / "stages" / stage.name / "answers.npz"
            make = partial(ask, stage, opens, dialogue, toolbox, seed, ranks, shop.log.say)
            kept = answers(path, shop.names[stage.name], make, ranks)
        objective: Any = NextToken()
        if stage.form != "text":
            teachers = [open() for open in opens] if stage.form == "logits" else []
            objective = DistillObjective(stage, tuple(teachers))
        source = AnswerSource(student, stage, kept, dialogue, toolbox, seed, ranks)
        told = {} if kept is None else {"answers": kept.about["counts"]}
        return shop.train(stage, source, objective, stage.steps, model=student) | told
    finally:
        toolbox.close()


def _teacher(shop: "Workshop", tutor: Tutor, student: Decoder, where: str) -> Decoder:
    model = shop.model(tutor.stage) if tutor.stage else checkpoint.load(tutor.path or "")
    return admit(model, student, f"{where}.teachers: {tutor.name}")


def _token_teachers(shop: "Workshop", stage: Rl, student: Decoder) -> TokenTeachers | None:
    """Open the teachers of an rl stage whose advantages come from them."""
    spec, where = stage.distill, f"{stage.name}.distill"
    if spec is None:
        return None
    names = {one.name for one in stage.environments}
    if unknown := set(spec.teachers) - names:
        known = ", ".join(sorted(names))
        raise EtudeError(f"{where}.teachers", f"no environment {min(unknown)!r}", known)
    default = None
    if spec.teacher or spec.path:
        found = shop.model(spec.teacher) if spec.teacher else checkpoint.load(spec.path or "")
        default = admit(found, student, f"{where}: {spec.teacher or spec.path}")
    elif untaught := names - set(spec.teachers):
        raise EtudeError(where, f"{min(untaught)} has no teacher", do="name one, or `teacher`")
    opened = {name: shop.model(name) for name in dict.fromkeys(spec.teachers.values())}
    by_name = {
        name: admit(opened[teacher], student, f"{where}.teachers: {teacher}")
        for name, teacher in spec.teachers.items()
    }
    return TokenTeachers(spec, default, by_name, shop.ranks)


Split = tuple[list[pairs.Pair], list[Given | None]]


def _pairs(
    shop: "Workshop", stage: Paired, reference: str | None
) -> tuple[dict[bool, Split], dict[str, int]]:
    """Return the pairs that train (False) and measure (True), and where the others went."""
    path = shop.folder / "stages" / stage.name / "pairs.npz"
    make = partial(_make_pairs, shop, stage, reference)
    kept = answers(path, _pairs_identity(shop, stage), make, shop.ranks)
    two = kept.told[0::2], kept.told[1::2]
    made = [pairs.Pair(*sides) for sides in zip(*two, strict=True)]
    given: list[Given | None] = [None] * len(made)
    if reference is not None:
        known = [row.tolist() for row in kept.values["reference"]]
        given = list(zip(known[0::2], known[1::2], strict=True))
    first = kept.about["counts"]["train"]
    train, held = (made[:first], given[:first]), (made[first:], given[first:])
    return {False: train, True: held}, kept.about["counts"]


def _pairs_identity(shop: "Workshop", stage: Paired) -> str:
    """The stage's own, and the content of a file of pairs."""
    if stage.pairs.file is None:
        return shop.names[stage.name]
    try:
        content = Path(stage.pairs.file).read_bytes()
    except OSError as error:
        where, why = f"{stage.name}.pairs.file: {stage.pairs.file}", error.strerror or str(error)
        raise EtudeError(where, f"cannot be read ({why})", "a file of pairs") from error
    return digest(shop.names[stage.name], content)


def _make_pairs(shop: "Workshop", stage: Paired, reference: str | None) -> Kept:
    spec, toolbox = stage.pairs, Toolbox()
    format, player = shop.library.format, None
    try:
        if spec.attempted:
            model = shop.model(spec.of or stage.start or "model")
            limits = {"max_tokens": spec.max_tokens, "length": model.arch.max_length}
            dialogue = Dialogue(shop.tokenizer, format)
            player = Player(LocalSampler(model), dialogue, toolbox, **limits, ranks=shop.ranks)
        seed, where = seed_of(shop.recipe.seed, stage.name), f"{stage.name}.pairs"
        found = pairs.collect(spec, shop.tokenizer, seed, where=where, format=format, player=player)
    finally:
        toolbox.close()
    told = [side for p in [*found.train, *found.held] for side in (p.chosen, p.rejected)]
    shop.log.say(f"{stage.name}: " + ", ".join(f"{n} {name}" for name, n in found.counts.items()))
    values = {}
    if reference is not None:
        scored = paired.score(shop.model(reference).eval(), told, shop.ranks)
        values = {"reference": [np.array(row, np.float32) for row in scored]}
    return Kept(told, {"counts": found.counts}, values)


def _learn_pairs(
    shop: "Workshop",
    stage: Preference | RewardModel,
    model: Decoder,
    kept: dict[bool, Split],
    objective: PreferenceObjective | RewardObjective,
    *,
    last: bool = False,
) -> Result:
    """Train, and measure on held-out pairs on the way and at the end."""

    def held_out() -> dict[str, float]:
        return paired.measure(model, objective, *kept[True], shop.ranks, last=last)

    source = PairSource(
        *kept[False],
        stage.batch,
        seed_of(shop.recipe.seed, stage.name),
        batches=Batches(shop.ranks, last),
        measure=held_out,
        every=stage.measure,
    )
    return shop.train(stage, source, objective, stage.steps, model=model) | held_out()


def _conversations(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not {"identity", "chats", "counts"} <= found.keys():
        raise EtudeError(str(path), "is damaged", do="delete it, and the experts are asked again")
    return found


def _blend(expert: list[Chat], written: list[Chat], share: float) -> list[Chat]:
    """Return conversations, `share` of them from the experts as far as `REPEATS` of each allow."""
    if share == 1:
        return expert
    wanted = round(len(written) * share / (1 - share))
    return (expert * min(REPEATS, -(-wanted // max(1, len(expert)))))[:wanted] + written
